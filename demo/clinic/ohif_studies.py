"""The sample studies as OHIF lists them: what finds each, and where something worth measuring is. Pure data."""

from dataclasses import dataclass, field

Box = tuple[float, float, float, float]

NAME, MRN, DESCRIPTION, ACCESSION = "Patient Name", "MRN", "Description", "Accession #"
FIELD_WORDS = {NAME: "patient name", MRN: "MRN", DESCRIPTION: "description", ACCESSION: "accession number"}


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        patient: the name as the study list shows it.
        filters: column of the study list -> a text that leaves only this study (alone, or with the other ones given).
        spots: name of a structure -> its box (left, top, right, bottom) in fractions of the image.
    """

    patient: str
    filters: dict[str, str]
    spots: dict[str, Box] = field(default_factory=dict)


# 16 x 16 pixels and no anatomy to speak of: places instead of structures.
PLACES = {
    "the centre of the image": (0.36, 0.38, 0.64, 0.62),
    "the upper half of the image": (0.34, 0.2, 0.66, 0.42),
    "the lower half of the image": (0.34, 0.56, 0.66, 0.78),
    "the left side of the image": (0.2, 0.36, 0.45, 0.64),
    "the right side of the image": (0.55, 0.36, 0.8, 0.64),
}

STUDIES = {
    "vertebra": Study(
        "CompressedSamples, CT1",
        {NAME: "CT1", MRN: "1CT1"},
        {
            "the vertebral canal": (0.37, 0.32, 0.555, 0.48),
            "the spinous process": (0.41, 0.5, 0.52, 0.635),
            "the left transverse process": (0.53, 0.44, 0.68, 0.52),
            "the vertebral body": (0.34, 0.1, 0.63, 0.31),
        },
    ),
    "skull": Study(
        "CQ500-CT-310",
        {NAME: "CQ500", MRN: "CQ500-CT-310"},
        {"the skull": (0.266, 0.206, 0.79, 0.8), "the brain": (0.365, 0.33, 0.7, 0.72)},
    ),
    "liver": Study(
        "Sssssss, Jsssss",
        {NAME: "Sssssss", MRN: "021234567", DESCRIPTION: "liver", ACCESSION: "8000000000330109"},
        {
            "the liver lesion": (0.245, 0.378, 0.337, 0.503),
            "the aorta": (0.5, 0.518, 0.55, 0.59),
            "the right kidney": (0.243, 0.62, 0.378, 0.8),
            "the left kidney": (0.597, 0.65, 0.723, 0.8),
            "the vertebra": (0.45, 0.6, 0.56, 0.75),
        },
    ),
    "vessel": Study(
        "CompressedSamples, MR1",
        {NAME: "MR1", MRN: "4MR1"},
        {"the bright ring": (0.57, 0.44, 0.765, 0.7), "the tubular structure": (0.58, 0.69, 0.8, 0.78)},
    ),
    "node": Study(
        "CompressedSamples, US1",
        {NAME: "US1", MRN: "13US1"},
        {
            "the left half of the lymph node": (0.2, 0.38, 0.48, 0.56),
            "the right half of the lymph node": (0.51, 0.38, 0.8, 0.54),
        },
    ),
    "heart": Study(
        "PLA",
        {NAME: "PLA", MRN: "204"},
        {
            "the left ventricle": (0.48, 0.3, 0.6, 0.55),
            "the mitral valve": (0.467, 0.523, 0.577, 0.61),
            "the left atrium": (0.49, 0.6, 0.625, 0.72),
        },
    ),
    "head": Study("Doe, Archibald", {MRN: "77654033", NAME: "Archibald", DESCRIPTION: "HEAD"}, PLACES),
    "spine": Study("Doe, Archibald", {MRN: "77654033", NAME: "Archibald", DESCRIPTION: "Spine"}, PLACES),
    "brain": Study("Doe, Peter", {MRN: "98890234", NAME: "Doe", ACCESSION: "134"}, PLACES),
    "angio": Study("Doe, Peter", {MRN: "98890234", NAME: "Peter", DESCRIPTION: "Brain-MRA"}, PLACES),
    "carotids": Study("Doe, Peter", {MRN: "98890234", NAME: "Doe", DESCRIPTION: "Carotids", ACCESSION: "428"}, PLACES),
    "bars": Study("Lestrade, G", {NAME: "Lestrade", MRN: "ID1"}, PLACES),
    "pattern": Study("Buc, Jérôme", {NAME: "Buc", MRN: "SCSFREN"}, PLACES),
}
