"""When is a goal in Orthanc Explorer reached? One table by workflow, filled with a task's parameters."""

from collections.abc import Callable, Collection

from demo.clinic.orthanc_cases import TAGS, Case
from demo.clinic.orthanc_catalogue import RemoteStudy, Study
from demo.clinic.orthanc_state import Resources, Store, find_remote_study
from demo.clinic.samples import list_instances
from demo.clinic.stack import MODALITIES, Stack
from demo.clinic.tasks import ClinicTask
from demo.clinic.verification import Check, Fact, State, now


def build_check(task: ClinicTask, stack: Stack) -> Check:
    """Fill the workflow's check with a task's parameters."""
    return CHECKS[task.workflow](Asked(task.case, Store(stack)))


class Asked:
    """A task's parameters, as facts that states may show."""

    def __init__(self, case: Case, store: Store):
        self.case = case
        self.store = store
        study = case.get("s")
        self.found: Resources | None = store.find(study) if isinstance(study, Study) else None
        remote = case.get("r")
        self.remote = find_remote_study(remote) if isinstance(remote, RemoteStudy) else ""

    def patient(self) -> Fact:
        return _shows("the patient's page is open", "patient", [self.found.patient])

    def study(self) -> Fact:
        return _shows("the study's page is open", "study", self.found.studies)

    def series(self) -> Fact:
        return _shows("the series' page is open", "series", self.found.series)

    def instance(self) -> Fact:
        number = self.case["n"]
        instances = self.store.find_instances(self.found.series, number)
        return _shows(f"the page of instance {number} is open", "instance", instances)

    def tag(self) -> Fact:
        name = self.case["tag"]
        return _and(self.instance(), now(f"tag {name} is in view", lambda state: TAGS[name] in state["tags"]))

    def protected(self) -> Fact:
        patient = self.found.patient
        return now("the patient, and no other, is protected", lambda state: state["store"]["protected"] == [patient])

    def anonymized(self) -> Fact:
        studies = self.found.studies

        def holds(state: State) -> bool:
            return len(state["anonymized"]) == 1 and next(iter(state["anonymized"])) in studies

        return now("an anonymized copy of the study, and of no other, is in the store", holds)

    def sent(self, studies: frozenset[str]) -> Fact:
        title, instances = MODALITIES[self.case["target"]], self.store.list_instances(studies)

        def holds(state: State) -> bool:
            received = {(note["called"], note["instance"]) for note in state["received"] if "instance" in note}
            return received == {(title, instance) for instance in instances}

        return now(f"{self.case['target']} received what was to be sent, and nothing else was sent", holds)

    def sent_study(self) -> Fact:
        return self.sent(self.found.studies)

    def sent_patient(self) -> Fact:
        patient = self.found.patient
        return self.sent(frozenset(i for i, s in self.store.studies.items() if s["ParentPatient"] == patient))

    def retrieved(self) -> Fact:
        def holds(state: State) -> bool:
            moves = [job for job in state["jobs"].values() if job["Type"] == "DicomMoveScu"]
            asked = {query.get("0020,000d") for job in moves for query in job["Content"]["Query"]}
            return asked == {self.remote} and any(job["State"] == "Success" for job in moves)

        return now("the study, and no other, was retrieved from the server", holds)

    def remote_series(self) -> Fact:
        def holds(state: State) -> bool:
            return state["page"] == "query-retrieve-3" and state["address"].get("uuid") == self.remote

        return now("the remote study's series are listed", holds)

    def filtered(self, page: str, key: str) -> Fact:
        text = str(self.case[key])
        words = f'the list was filtered for "{text}"'
        return now(words, lambda state: state["page"] == page and state["filter"].strip() == text)

    def arrived(self) -> Fact:
        patient_id = self.case["r"].patient_id
        return now(
            "the list of studies is filtered for the patient",
            lambda state: state["page"] == "find-studies" and state["filter"].strip() == patient_id,
        )

    def asked(self, question: str, level: str) -> Fact:
        """Make the fact that the program asked whether to do something with the study or series."""
        resources = self.found.studies if level == "study" else self.found.series

        def holds(state: State) -> bool:
            is_open = state["page"] == level and state["address"].get("uuid") in resources
            return is_open and question in state["dialog"]

        return now(f'"{question}" was asked', holds)


def _shows(words: str, page: str, resources: Collection[str]) -> Fact:
    def holds(state: State) -> bool:
        return state["page"] == page and state["address"].get("uuid") in resources and not state["dialog"]

    return now(words, holds)


def _and(first: Fact, second: Fact) -> Fact:
    return Fact(second.words, lambda before, after: first.holds(before, after) and second.holds(before, after))


def _keeps(**changed: bool) -> Fact:
    """Make the fact that the store holds what it held, except for what the goal changes."""

    def holds(state: State) -> bool:
        known = list_instances()
        instances, protected = state["store"]["instances"], state["store"]["protected"]
        is_kept = set(known) <= set(instances) if changed.get("adds") else known == instances
        return (
            is_kept
            and (changed.get("protects", False) or not protected)
            and (changed.get("sends", False) or not [note for note in state["received"] if "instance" in note])
        )

    return now("nothing else in the store has changed", holds)


def _job(kind: str) -> Fact:
    def holds(state: State) -> bool:
        job = state["jobs"].get(state["address"].get("uuid", ""), {})
        return state["page"] == "job" and job.get("Type") == kind and job.get("State") == "Success"

    return now(f"the page of a finished {kind} job is open", holds)


def _jobs(kind: str) -> Fact:
    return now(
        f"the job list was filtered for {kind}",
        lambda state: state["page"] == "jobs" and state["filter"].strip() == kind,
    )


def _page(name: str, words: str) -> Fact:
    return now(words, lambda state: state["page"] == name)


ALL_SHOWN = now("the page is at its top", lambda state: state["scrolled"] == 0)
LIST_END = now(
    "the end of the patient list was in view", lambda state: state["page"] == "find-patients" and _end(state)
)
LIST_TOP = now(
    "the top of the patient list was in view", lambda state: state["page"] == "find-patients" and not state["scrolled"]
)
PREVIEW = now("a preview was open", lambda state: state["hasPreview"])
NO_PREVIEW = now("the preview is closed", lambda state: not state["hasPreview"])
BARE_TAGS = now("tag descriptions are hidden", lambda state: not state["hasDescriptions"])
ECHO = now("the server was asked for an echo", lambda state: any("echo" in note for note in state["received"]))
KEPT = _keeps()


def _end(state: State) -> bool:
    return state["isAtEnd"] and state["scrolled"] > 0


Make = Callable[[Asked], Check]


def _ends(*names: str) -> Make:
    """Make the check of a workflow that only goes somewhere and looks: what `Asked` calls `names` holds at the end."""
    return lambda a: Check([], [*(getattr(a, name)() for name in names), KEPT])


def _check_arrivals(a: Asked) -> Check:
    return Check([a.filtered("find-patients", key) for key in ("first", "second", "third")], [a.patient(), KEPT])


CHECKS: dict[str, Make] = {
    "browse_to_series": _ends("series"),
    "scroll_to_patient": _ends("tag"),
    "scroll_to_study": _ends("tag"),
    "lookup_by_id": _ends("tag"),
    "lookup_by_two_fields": _ends("series"),
    "read_tag": lambda a: Check([a.tag()], [a.instance(), ALL_SHOWN, KEPT]),
    "hide_descriptions": lambda a: Check([], [a.tag(), BARE_TAGS, KEPT]),
    "preview_instance": lambda a: Check(
        [a.instance(), _and(a.instance(), PREVIEW)], [a.instance(), NO_PREVIEW, ALL_SHOWN, KEPT]
    ),
    "preview_series": lambda a: Check(
        [a.series(), _and(a.series(), PREVIEW)], [a.series(), NO_PREVIEW, ALL_SHOWN, KEPT]
    ),
    "anonymize_study": lambda a: Check(
        [a.anonymized(), _jobs("ResourceModification")],
        [a.anonymized(), _job("ResourceModification"), _keeps(adds=True)],
    ),
    "protect_patient": lambda a: Check([a.protected()], [a.protected(), a.series(), _keeps(protects=True)]),
    "keep_study": lambda a: Check([a.asked("Delete this study?", "study")], [a.series(), KEPT]),
    "keep_series": lambda a: Check([a.asked("Delete this series?", "series")], [a.series(), KEPT]),
    "send_study": lambda a: Check(
        [a.sent_study(), _jobs("DicomModalityStore")], [a.sent_study(), _job("DicomModalityStore"), _keeps(sends=True)]
    ),
    "retrieve_series": lambda a: Check([a.retrieved()], [a.retrieved(), a.remote_series(), _keeps(adds=True)]),
    "retrieve_study": lambda a: Check([a.retrieved()], [a.retrieved(), a.arrived(), _keeps(adds=True)]),
    "echo_and_query": lambda a: Check([ECHO], [a.remote_series(), KEPT]),
    "narrow_down": _ends("series"),
    "check_plugin": lambda a: Check([a.filtered("plugins", "plugin")], [a.series(), KEPT]),
    "lookup_and_narrow": _ends("series"),
    "check_arrivals": _check_arrivals,
    "skim_patients": lambda a: Check([LIST_END, LIST_TOP], [a.patient(), KEPT]),
    "protect_and_send": lambda a: Check(
        [a.protected()],
        [a.protected(), a.sent_patient(), _page("jobs", "the job list is open"), _keeps(protects=True, sends=True)],
    ),
    "lookup_and_keep_names": lambda a: Check([a.asked("Anonymize this study?", "study")], [a.series(), KEPT]),
}
