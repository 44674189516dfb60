"""The OHIF tasks' parameters: which study, found how, and what a workflow does to it. Pure data."""

from collections.abc import Iterable
from dataclasses import dataclass

from demo.clinic.ohif_studies import ACCESSION, DESCRIPTION, FIELD_WORDS, MRN, NAME, STUDIES, Box

CENTRE, UPPER, LOWER = "the centre of the image", "the upper half of the image", "the lower half of the image"
LEFT, RIGHT = "the left side of the image", "the right side of the image"
CANAL, PROCESS = "the vertebral canal", "the spinous process"
LESION, AORTA, KIDNEY = "the liver lesion", "the aorta", "the left kidney"
VENTRICLE, VALVE, ATRIUM = "the left ventricle", "the mitral valve", "the left atrium"
RING, TUBE = "the bright ring", "the tubular structure"
NODE_LEFT, NODE_RIGHT = "the left half of the lymph node", "the right half of the lymph node"
SKULL, BRAIN = "the skull", "the brain"


@dataclass(frozen=True)
class Case:
    """One task's parameters: `study` and `fields` find the study, `values` fill the phases and the goal's slots."""

    study: str
    fields: tuple[str, ...]
    values: dict[str, str]

    def __getitem__(self, key: str) -> str:
        return self.values[key]

    def box(self, key: str = "spot") -> Box:
        """Look up the box of a structure named in the values."""
        return STUDIES[self.study].spots[self.values[key]]

    def drawings(self) -> list[tuple[Box, str | None]]:
        """List the structures to draw on, in the goal's order: box and the viewport's name; None for the first one."""
        where = self.values.get("where")
        return [(self.box(key), where) for key in ("spot", "spot2") if key in self.values]

    def slots(self) -> dict[str, str]:
        """Name what a goal's template may use: the values, and what finds the study (and the second one)."""
        slots = self.values | {"find": _describe(self.study, self.fields)}
        if "second" in self.values:
            slots["find2"] = _describe(self.values["second"], [self.values["column"]])
            slots["study2"] = f"the study with {slots['find2']}"
        slots["study"] = f"the study with {slots['find']}"
        return slots


def _describe(study: str, fields: Iterable[str]) -> str:
    words = [f"{FIELD_WORDS[column]} {STUDIES[study].filters[column]}" for column in fields]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 2 else words)


def case(study: str, *fields: str, **values: str) -> Case:
    return Case(study, fields, values)


CASES = {
    "measure_zoomed": [
        case("vertebra", MRN, spot=CANAL),
        case("liver", DESCRIPTION, spot=AORTA),
        case("vessel", NAME, spot=RING),
        case("heart", NAME, spot=VALVE),
        case("vertebra", NAME, spot=PROCESS),
        case("skull", NAME, spot=BRAIN),
        case("liver", MRN, spot=LESION),
    ],
    "measure_two": [
        case("liver", MRN, tool="Ellipse", spot=LESION, spot2=AORTA),
        case("vertebra", MRN, tool="Rectangle", spot=CANAL, spot2=PROCESS),
        case("heart", NAME, tool="Bidirectional", spot=VENTRICLE, spot2=ATRIUM),
        case("vessel", MRN, tool="Circle", spot=RING, spot2=TUBE),
        case("node", NAME, tool="Ellipse", spot=NODE_LEFT, spot2=NODE_RIGHT),
        case("liver", DESCRIPTION, tool="Bidirectional", spot=KIDNEY, spot2=LESION),
        case("skull", MRN, tool="Rectangle", spot=SKULL, spot2=BRAIN),
    ],
    "scroll_measure": [
        case("heart", NAME, spot=VENTRICLE),
        case("head", DESCRIPTION, spot=CENTRE),
        case("heart", MRN, spot=VALVE),
        case("head", MRN, DESCRIPTION, spot=UPPER),
        case("heart", NAME, spot=ATRIUM),
        case("node", MRN, spot=NODE_LEFT),
        case("heart", MRN, NAME, spot=VENTRICLE),
    ],
    "window_zoom": [
        case("vertebra", NAME, preset="Bone", direction="in"),
        case("skull", MRN, preset="Lung", direction="out"),
        case("vertebra", MRN, preset="Lung", direction="in"),
        case("skull", NAME, preset="Soft tissue", direction="in"),
        case("vertebra", NAME, MRN, preset="Soft tissue", direction="out"),
        case("skull", MRN, NAME, preset="Bone", direction="in"),
        case("vertebra", MRN, preset="Liver", direction="out"),
    ],
    "annotate_zoomed": [
        case("liver", DESCRIPTION, spot=LESION, text="hypointense lesion"),
        case("vertebra", NAME, spot=CANAL, text="canal patent"),
        case("heart", MRN, spot=VALVE, text="mitral valve"),
        case("vessel", MRN, spot=RING, text="check lumen"),
        case("liver", MRN, spot=AORTA, text="normal aorta"),
        case("node", NAME, spot=NODE_RIGHT, text="hilar flow"),
        case("heart", NAME, spot=VENTRICLE, text="LV cavity"),
    ],
    "rename_length": [
        case("vertebra", MRN, spot=CANAL, text="canal width"),
        case("liver", NAME, spot=LESION, text="target lesion 1"),
        case("heart", NAME, spot=VALVE, text="mitral annulus"),
        case("vessel", NAME, spot=RING, text="outer diameter"),
        case("liver", MRN, DESCRIPTION, spot=AORTA, text="aorta"),
        case("vertebra", NAME, MRN, spot=PROCESS, text="process"),
    ],
    "delete_region": [
        case("vertebra", MRN, tool="Ellipse", spot=CANAL),
        case("liver", DESCRIPTION, tool="Circle", spot=LESION),
        case("heart", NAME, tool="Rectangle", spot=VENTRICLE),
        case("vessel", MRN, tool="Ellipse", spot=RING),
        case("skull", NAME, tool="Bidirectional", spot=BRAIN),
        case("liver", MRN, tool="Rectangle", spot=AORTA),
    ],
    "side_by_side": [
        case("angio", DESCRIPTION, direction="out"),
        case("brain", ACCESSION, direction="in"),
        case("angio", NAME, DESCRIPTION, direction="out"),
        case("brain", MRN, ACCESSION, direction="in"),
        case("angio", MRN, DESCRIPTION, direction="in"),
        case("brain", NAME, ACCESSION, direction="out"),
        case("brain", ACCESSION, NAME, direction="in"),
    ],
    "grid_measure": [
        case("spine", DESCRIPTION, where="top left viewport", tool="Ellipse", spot=UPPER, spot2=LOWER),
        case("angio", DESCRIPTION, where="top right viewport", tool="Length", spot=CENTRE, spot2=LOWER),
        case("spine", MRN, DESCRIPTION, where="bottom left viewport", tool="Rectangle", spot=UPPER, spot2=LOWER),
        case("angio", NAME, DESCRIPTION, where="bottom left viewport", tool="Ellipse", spot=CENTRE, spot2=LOWER),
        case("spine", NAME, DESCRIPTION, where="top right viewport", tool="Length", spot=UPPER, spot2=LOWER),
        case("angio", MRN, DESCRIPTION, where="top left viewport", tool="Rectangle", spot=CENTRE, spot2=UPPER),
        case("spine", DESCRIPTION, where="bottom left viewport", tool="Length", spot=CENTRE, spot2=LOWER),
    ],
    "tag_lookup": [
        case("vertebra", MRN, text="SliceThickness", direction="in"),
        case("liver", DESCRIPTION, text="EchoTime", direction="out"),
        case("heart", NAME, text="FrameTime", direction="in"),
        case("skull", NAME, text="KVP", direction="out"),
        case("vessel", NAME, text="Manufacturer", direction="out"),
        case("spine", DESCRIPTION, text="BodyPartExamined", direction="in"),
        case("liver", MRN, text="RepetitionTime", direction="in"),
    ],
    "brush_label": [
        case("vertebra", MRN, radius="3", spot=CANAL, spot2=PROCESS),
        case("liver", DESCRIPTION, radius="8", spot=LESION, spot2=KIDNEY),
        case("vessel", NAME, radius="2", spot=RING, spot2=TUBE),
        case("skull", NAME, radius="10", spot=BRAIN, spot2=SKULL),
        case("liver", MRN, radius="6", spot=AORTA, spot2=LESION),
        case("vertebra", NAME, radius="4", spot=PROCESS, spot2=CANAL),
        case("vessel", MRN, radius="3", spot=TUBE, spot2=RING),
    ],
    "brush_erase": [
        case("liver", MRN, radius="15", spot=LESION, spot2=LESION),
        case("vertebra", NAME, radius="5", spot=CANAL, spot2=CANAL),
        case("skull", MRN, radius="20", spot=BRAIN, spot2=BRAIN),
        case("vessel", MRN, radius="4", spot=RING, spot2=RING),
        case("liver", DESCRIPTION, radius="10", spot=KIDNEY, spot2=KIDNEY),
        case("vertebra", MRN, radius="6", spot=PROCESS, spot2=PROCESS),
        case("liver", NAME, radius="9", spot=AORTA, spot2=AORTA),
    ],
    "angle_zoomed": [
        case("vertebra", MRN, tool="Angle", spot=CANAL, spot2=PROCESS),
        case("heart", NAME, tool="Angle", spot=VENTRICLE, spot2=VALVE),
        case("liver", DESCRIPTION, tool="Angle", spot=AORTA, spot2=LESION),
        case("spine", DESCRIPTION, tool="Cobb Angle", spot=CENTRE, spot2=LOWER),
        case("vertebra", NAME, tool="Cobb Angle", spot=CANAL, spot2=PROCESS),
        case("vessel", MRN, tool="Angle", spot=RING, spot2=TUBE),
        case("spine", MRN, DESCRIPTION, tool="Cobb Angle", spot=LOWER, spot2=CENTRE),
    ],
    "reorient_measure": [
        case("vertebra", NAME, change="rotate", spot=CANAL),
        case("liver", MRN, change="flip", spot=LESION),
        case("vessel", MRN, change="invert", spot=RING),
        case("skull", NAME, change="rotate", spot=BRAIN),
        case("heart", NAME, change="invert", spot=VENTRICLE),
        case("vertebra", MRN, change="flip", spot=PROCESS),
        case("liver", DESCRIPTION, change="invert", spot=AORTA),
    ],
    "colour_region": [
        case("liver", DESCRIPTION, colours="Hot Iron", spot=LESION),
        case("vertebra", MRN, colours="HSV", spot=CANAL),
        case("vessel", NAME, colours="PET", spot=RING),
        case("skull", NAME, colours="X Ray", spot=BRAIN),
        case("liver", MRN, colours="Perfusion", spot=KIDNEY),
        case("vertebra", NAME, colours="Red Hot", spot=PROCESS),
    ],
    "next_patient": [
        case("vertebra", MRN, second="liver", column=MRN),
        case("heart", NAME, second="vessel", column=NAME),
        case("spine", DESCRIPTION, second="carotids", column=DESCRIPTION),
        case("skull", MRN, second="node", column=MRN),
        case("liver", NAME, second="vertebra", column=NAME),
        case("node", MRN, second="vessel", column=MRN),
        case("liver", DESCRIPTION, second="angio", column=DESCRIPTION),
    ],
    "freehand_outline": [
        case("vertebra", MRN, spot=CANAL, spot2=PROCESS),
        case("liver", DESCRIPTION, spot=LESION, spot2=AORTA),
        case("vessel", NAME, spot=RING, spot2=TUBE),
        case("heart", NAME, spot=VENTRICLE, spot2=ATRIUM),
        case("liver", MRN, spot=KIDNEY, spot2=LESION),
        case("vertebra", NAME, spot=PROCESS, spot2=CANAL),
        case("heart", MRN, spot=VALVE, spot2=VENTRICLE),
    ],
    "stack_review": [
        case("heart", NAME, MRN),
        case("head", DESCRIPTION, MRN),
        case("heart", MRN),
        case("head", NAME, DESCRIPTION),
        case("heart", MRN, NAME),
        case("head", DESCRIPTION),
        case("heart", NAME),
    ],
    "narrow_list": [
        case("angio", NAME, MRN, DESCRIPTION, first="in", last="out"),
        case("spine", MRN, DESCRIPTION, NAME, first="out", last="in"),
        case("liver", DESCRIPTION, NAME, MRN, first="in", last="out"),
        case("brain", ACCESSION, MRN, NAME, first="out", last="in"),
        case("carotids", NAME, DESCRIPTION, ACCESSION, first="in", last="out"),
        case("head", MRN, NAME, DESCRIPTION, first="out", last="in"),
        case("liver", MRN, ACCESSION, DESCRIPTION, first="out", last="in"),
    ],
    "frame_compare": [
        case("heart", NAME, spot=VENTRICLE, spot2=VALVE),
        case("node", MRN, spot=NODE_LEFT, spot2=NODE_RIGHT),
        case("heart", MRN, spot=ATRIUM, spot2=VENTRICLE),
        case("head", DESCRIPTION, spot=CENTRE, spot2=UPPER),
        case("heart", NAME, MRN, spot=VALVE, spot2=ATRIUM),
        case("node", NAME, spot=NODE_RIGHT, spot2=NODE_LEFT),
        case("heart", MRN, NAME, spot=VENTRICLE, spot2=ATRIUM),
    ],
    "window_segment": [
        case("vertebra", MRN, preset="Bone", radius="4", spot=PROCESS),
        case("skull", NAME, preset="Brain", radius="12", spot=BRAIN),
        case("vertebra", NAME, preset="Soft tissue", radius="3", spot=CANAL),
        case("skull", MRN, preset="Bone", radius="8", spot=SKULL),
        case("vertebra", MRN, preset="Lung", radius="5", spot=CANAL),
        case("skull", NAME, preset="Soft tissue", radius="15", spot=BRAIN),
    ],
    "layout_annotate": [
        case("angio", DESCRIPTION, spot=CENTRE, text="localizer ok"),
        case("brain", ACCESSION, spot=UPPER, text="motion"),
        case("angio", NAME, DESCRIPTION, spot=LOWER, text="low signal"),
        case("brain", MRN, ACCESSION, spot=CENTRE, text="bright area"),
        case("angio", MRN, DESCRIPTION, spot=UPPER, text="review with MRA"),
        case("brain", NAME, ACCESSION, spot=LOWER, text="compare pilot"),
    ],
}
