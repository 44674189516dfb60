"""The parameters of the Orthanc tasks, one case a task. What is done with them: workflows_orthanc.py."""

from demo.clinic.orthanc_catalogue import (
    BRAIN_LOCALIZER,
    BRAIN_PILOT,
    CQ500,
    CT1,
    FREN,
    GERM,
    HEAD,
    LESTRADE,
    LIVER,
    MR1,
    MRA_ANGIO,
    MRA_LOCALIZER,
    MRA_PILOT,
    OB,
    PLA,
    PLAN,
    REMOTE_BONE,
    REMOTE_CT,
    REMOTE_DOSE,
    REMOTE_ECG,
    REMOTE_LIVER,
    REMOTE_SEGMENTATION,
    SCOUT,
    SMARTSCORE,
    SPINE_LAT,
    SPINE_OBLI_1,
    SPINE_OBLI_2,
    US1,
)

Case = dict[str, object]

TAGS = {
    "PatientBirthDate": "0010,0030",
    "PatientSex": "0010,0040",
    "PatientWeight": "0010,1030",
    "BodyPartExamined": "0018,0015",
    "SliceThickness": "0018,0050",
    "KVP": "0018,0060",
    "RepetitionTime": "0018,0080",
    "EchoTime": "0018,0081",
    "MagneticFieldStrength": "0018,0087",
    "SoftwareVersions": "0018,1020",
    "FlipAngle": "0018,1314",
    "PatientPosition": "0018,5100",
    "SeriesNumber": "0020,0011",
    "PhotometricInterpretation": "0028,0004",
    "Rows": "0028,0010",
    "BitsAllocated": "0028,0100",
}


def _rows(keys: str, *rows: tuple) -> list[Case]:
    """Name the values of each row: `_rows("s text", (CT1, "1CT1"))` is `[{"s": CT1, "text": "1CT1"}]`."""
    return [dict(zip(keys.split(), row, strict=True)) for row in rows]


NARROWED_LOOKUPS = [
    {"s": study, "lookup": {field: value}, "text": text}
    for study, field, value, text in [
        (MRA_ANGIO, "patient_name", "Doe*", "MRA"),
        (CT1, "patient_name", "Compressed*", "JFK"),
        (BRAIN_PILOT, "patient_id", "98890234", "134"),
        (SPINE_LAT, "patient_name", "*Doe*", "XR C Spine"),
        (MR1, "patient_name", "CompressedSamples*", "TOSHIBA"),
        (SCOUT, "patient_id", "98890234", "January 1, 2001"),
        (HEAD, "patient_name", "Doe^*", "HEAD/BRAIN"),
        (US1, "patient_name", "*Samples*", "BAPTIST"),
        (MRA_PILOT, "patient_id", "98890234", "Brain-MRA"),
        (SPINE_OBLI_2, "patient_id", "77654033", "Spine"),
        (HEAD, "patient_id", "7765*", "1995"),
    ]
]

LOOKUPS = [
    {"s": study, "lookup": {first: text, second: other}}
    for study, first, text, second, other in [
        (SPINE_LAT, "patient_name", "*Archibald*", "study_description", "*Spine*"),
        (HEAD, "patient_name", "Doe*", "study_description", "*BRAIN WO*"),
        (BRAIN_PILOT, "patient_id", "98890234", "study_description", "Brain"),
        (MRA_ANGIO, "patient_id", "98890234", "study_description", "*MRA"),
        (CT1, "patient_name", "Compressed*", "study_description", "e+1"),
        (LIVER, "patient_name", "Sss*", "study_description", "abdomen*"),
        (LIVER, "patient_id", "021234567", "accession_number", "8000000000330109"),
        (BRAIN_LOCALIZER, "patient_name", "Doe^Peter", "accession_number", "134"),
        (SPINE_OBLI_2, "patient_id", "77654033", "study_description", "XR*"),
        (MRA_PILOT, "patient_name", "*Peter", "study_description", "Brain-MRA"),
        (HEAD, "patient_id", "77654033", "study_description", "CT*"),
    ]
]

CASES = {
    "browse_to_series": _rows(
        "s text",
        (FREN, "SCSFREN"), (CT1, "1CT1"), (MR1, "MR1"), (SPINE_LAT, "Archibald"), (SCOUT, "98890234"), (OB, "OB^"),
        (LIVER, "021234567"), (PLAN, "id00001"), (LESTRADE, "Lestrade"), (CQ500, "CQ500"),
    ),
    "scroll_to_patient": _rows(
        "s n tag",
        (LIVER, 1, "PatientWeight"), (LESTRADE, 1, "Rows"), (OB, 24, "PatientSex"), (PLA, 16117, "PatientBirthDate"),
        (LIVER, 1, "RepetitionTime"), (GERM, 1, "SeriesNumber"), (OB, 24, "BitsAllocated"), (LIVER, 1, "FlipAngle"),
        (PLA, 16117, "Rows"), (LESTRADE, 1, "SeriesNumber"), (GERM, 1, "Rows"),
    ),
    "scroll_to_study": _rows(
        "s n tag",
        (US1, 2, "PatientSex"), (HEAD, 181, "KVP"), (SPINE_LAT, 1, "PatientPosition"),
        (SMARTSCORE, 9, "SliceThickness"), (MRA_ANGIO, 5, "EchoTime"), (BRAIN_PILOT, 2, "MagneticFieldStrength"),
        (SPINE_OBLI_2, 1, "KVP"), (US1, 1, "Rows"), (SCOUT, 2, "SoftwareVersions"), (HEAD, 180, "BodyPartExamined"),
        (MRA_PILOT, 3, "FlipAngle"),
    ),
    "lookup_by_id": _rows(
        "s n tag",
        (CT1, 1, "PatientWeight"), (MR1, 1, "RepetitionTime"), (US1, 1, "SoftwareVersions"), (CQ500, 21, "KVP"),
        (LIVER, 1, "PatientPosition"), (OB, 24, "Rows"), (LESTRADE, 1, "BitsAllocated"), (LESTRADE, 1, "Rows"),
        (PLA, 16117, "SeriesNumber"), (MR1, 1, "Rows"), (CQ500, 21, "SliceThickness"),
    ),
    "lookup_by_two_fields": LOOKUPS,
    "read_tag": _rows(
        "s text n tag",
        (CT1, "JFK IMAGING", 1, "PatientSex"), (MR1, "TOSHIBA", 1, "EchoTime"), (US1, "BAPTIST", 2, "SeriesNumber"),
        (CQ500, "CQ500", 21, "PatientPosition"), (LIVER, "AKH - WIEN", 1, "SliceThickness"),
        (OB, "Philips", 24, "PatientBirthDate"), (LESTRADE, "Moriarty", 1, "Rows"),
        (HEAD, "HEAD/BRAIN", 18, "SliceThickness"), (SPINE_OBLI_1, "XR C Spine", 1, "BodyPartExamined"),
        (MRA_ANGIO, "Brain-MRA", 3, "RepetitionTime"), (SMARTSCORE, "January 1, 2001", 7, "KVP"),
    ),
    "hide_descriptions": _rows(
        "s text n tag",
        (CT1, "CT1", 1, "SliceThickness"), (MR1, "4MR1", 1, "FlipAngle"), (CQ500, "CQ500", 21, "SoftwareVersions"),
        (LIVER, "Sssssss", 1, "BodyPartExamined"), (HEAD, "77654033", 182, "PatientSex"),
        (SCOUT, "Peter", 1, "PatientPosition"), (BRAIN_PILOT, "98890234", 1, "PatientWeight"),
        (US1, "13US1", 1, "BitsAllocated"), (OB, "11-05-25", 24, "SeriesNumber"),
        (SPINE_LAT, "Doe^Archibald", 1, "KVP"),
    ),
    "preview_instance": _rows(
        "s text n",
        (CT1, "1CT1", 1), (MR1, "TOSHIBA", 1), (OB, "Philips", 24), (LIVER, "abdomen", 1), (PLA, "PLA", 16117),
        (CT1, "JFK", 1), (LIVER, "WIEN", 1), (MR1, "4MR1", 1), (OB, "11-05-25", 24), (LIVER, "021234567", 1),
    ),
    "preview_series": _rows(
        "s text",
        (LIVER, "Sssssss"), (CT1, "1CT1"), (MR1, "4MR1"), (OB, "11-05-25-142825"), (PLA, "PLA"), (LIVER, "021234567"),
        (CT1, "^CT1"), (MR1, "^MR1"), (OB, "OB^"), (PLA, "204"),
    ),
    "anonymize_study": _rows(
        "s text",
        (CT1, "1CT1"), (MR1, "4MR1"), (LIVER, "abdomen"), (HEAD, "HEAD/BRAIN"), (SPINE_LAT, "XR C Spine"),
        (MRA_ANGIO, "Brain-MRA"), (OB, "Philips"), (LESTRADE, "Moriarty"),
    ),
    "protect_patient": _rows(
        "s text",
        (FREN, "Buc"), (CT1, "CT1"), (US1, "13US1"), (SPINE_OBLI_1, "77654033"), (SMARTSCORE, "Peter"),
        (LESTRADE, "ID1"), (PLA, "PLA"), (LIVER, "Sss"), (GERM, "SCSGERM"),
    ),
    "keep_study": _rows(
        "s text series_text",
        (SPINE_LAT, "XR C Spine", "LAT"), (HEAD, "HEAD/BRAIN", "Routine"), (MRA_ANGIO, "Brain-MRA", "ANGIO"),
        (MR1, "TOSHIBA", "MR"), (SCOUT, "January 1, 2001", "Scout"), (MRA_LOCALIZER, "Brain-MRA", "LOCALIZER"),
        (US1, "BAPTIST", "US"), (SPINE_OBLI_2, "C Spine", "OBLI 2"), (LIVER, "abdomen", "lesion"),
        (SMARTSCORE, "January 1, 2001", "Gated"),
    ),
    "keep_series": _rows(
        "s text series_text",
        (SPINE_OBLI_1, "Archibald", "OBLI 1"), (BRAIN_PILOT, "98890234", "PILOT"), (CT1, "1CT1", "CT"),
        (MRA_PILOT, "Peter", "T/S/C"), (SCOUT, "Doe^Peter", "Scout"), (LIVER, "021234567", "marked"),
        (PLAN, "id00001", "RTPLAN"), (CQ500, "CQ500", "Plain"), (HEAD, "77654033", "Brain"),
    ),
    "send_study": _rows(
        "s text target",
        (CT1, "1CT1", "remote-pacs"), (MR1, "TOSHIBA", "teaching-archive"), (LIVER, "abdomen", "ward-7-viewer"),
        (HEAD, "HEAD/BRAIN", "remote-pacs"), (SPINE_LAT, "XR C Spine", "ward-7-viewer"),
        (MRA_ANGIO, "Brain-MRA", "teaching-archive"), (OB, "Philips", "ward-7-viewer"),
        (LESTRADE, "Moriarty", "remote-pacs"), (PLAN, "id00001", "teaching-archive"),
    ),
    "retrieve_series": _rows(
        "r field value",
        (REMOTE_BONE, "Patient Name", "CompressedSamples^NM1"), (REMOTE_ECG, "Study Description", "ECG"),
        (REMOTE_SEGMENTATION, "Accession Number", "03086212"), (REMOTE_DOSE, "Patient Name", "Lastname*"),
        (REMOTE_BONE, "Study Description", "Whole*"), (REMOTE_SEGMENTATION, "Patient Name", "JANCT*"),
        (REMOTE_LIVER, "Accession Number", "8000000000330109"), (REMOTE_CT, "Study Description", "e+1"),
        (REMOTE_ECG, "Accession Number", "03028041970546"),
    ),
    "retrieve_study": _rows(
        "r field value",
        (REMOTE_SEGMENTATION, "Patient Name", "JANCT000"), (REMOTE_BONE, "Study Description", "Whole Body Bone"),
        (REMOTE_ECG, "Accession Number", "03028041970546"), (REMOTE_DOSE, "Patient Name", "Lastname^Firstname"),
        (REMOTE_SEGMENTATION, "Accession Number", "03086212"), (REMOTE_ECG, "Study Description", "ECG*"),
        (REMOTE_BONE, "Patient Name", "*NM1"), (REMOTE_ECG, "Patient Name", "Anonymous"),
    ),
    "echo_and_query": _rows(
        "r field value",
        (REMOTE_BONE, "Patient Name", "CompressedSamples^NM1"), (REMOTE_LIVER, "Study Description", "abdomen*"),
        (REMOTE_CT, "Patient Name", "*CT1"), (REMOTE_SEGMENTATION, "Accession Number", "03086212"),
        (REMOTE_ECG, "Patient Name", "Anonymous"), (REMOTE_DOSE, "Patient Name", "Last*"),
        (REMOTE_LIVER, "Accession Number", "8000000000330109"), (REMOTE_BONE, "Study Description", "*Bone"),
        (REMOTE_CT, "Study Description", "e+1"),
    ),
    "narrow_down": _rows(
        "s text study_text series_text",
        (SPINE_LAT, "Archibald", "C Spine", "LAT"), (SPINE_OBLI_1, "77654033", "XR", "OBLI 1"),
        (SPINE_OBLI_2, "Doe^Archibald", "Spine", "OBLI 2"), (HEAD, "Archibald", "HEAD", "Routine"),
        (BRAIN_PILOT, "98890234", "134", "PILOT"), (MRA_ANGIO, "Doe^Peter", "MRA", "ANGIO"),
        (MRA_PILOT, "Peter", "Brain-MRA", "T/S/C"), (MRA_LOCALIZER, "98890234", "MRA", "LOCALIZER"),
        (SCOUT, "Peter", "2001", "Scout"), (SMARTSCORE, "98890234", "January", "Gated"),
        (BRAIN_LOCALIZER, "Doe^Peter", "134", "FAST LOCALIZER"), (HEAD, "77654033", "1995", "Brain"),
    ),
    "check_plugin": _rows(
        "s plugin text",
        (CT1, "dicom-web", "1CT1"), (MR1, "WADO-RS", "4MR1"), (LIVER, "dicom-web", "AKH"), (OB, "QIDO-RS", "11-05-25"),
        (HEAD, "web", "HEAD/BRAIN"), (MRA_PILOT, "dicom-web", "Brain-MRA"), (SPINE_OBLI_2, "STOW-RS", "XR C Spine"),
        (LESTRADE, "WADO-URI", "Lestrade"),
    ),
    "lookup_and_narrow": NARROWED_LOOKUPS,
    "check_arrivals": _rows(
        "s first second third",
        (LESTRADE, "1CT1", "4MR1", "Lestrade"), (OB, "SCSFREN", "SCSGERM", "11-05-25"),
        (LIVER, "Archibald", "Peter", "Sssssss"), (CQ500, "Buc", "Last^First", "CQ500"), (US1, "CT1", "MR1", "US1"),
        (PLA, "98890234", "77654033", "204"), (GERM, "OB^", "PLA", "Äneas"), (MR1, "id00001", "Lestrade", "4MR1"),
        (HEAD, "13US1", "021234567", "77654033"), (SCOUT, "Lestrade", "Sss", "Peter"),
        (CT1, "Peter", "Archibald", "^CT1"),
    ),
    "skim_patients": _rows(
        "s text",
        (CT1, "1CT1"), (LESTRADE, "Lestrade"), (PLAN, "id00001"), (HEAD, "Archibald"), (SCOUT, "98890234"),
        (LIVER, "Sssssss"), (US1, "13US1"), (GERM, "SCSGERM"), (OB, "OB^"),
    ),
    "protect_and_send": _rows(
        "s text target",
        (CT1, "1CT1", "teaching-archive"), (LIVER, "Sssssss", "remote-pacs"), (HEAD, "Archibald", "ward-7-viewer"),
        (OB, "OB^", "remote-pacs"), (LESTRADE, "Lestrade", "teaching-archive"), (MR1, "4MR1", "ward-7-viewer"),
    ),
    "lookup_and_keep_names": _rows(
        "s",
        (CT1,), (MR1,), (LIVER,), (CQ500,), (US1,), (LESTRADE,),
    ),
}  # fmt: skip
