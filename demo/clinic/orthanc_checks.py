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
        self.remote, self.remote_instances = (
            find_remote_study(remote) if isinstance(remote, RemoteStudy) else ("", set[str]())
        )

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
        sizes = {study: len(self.store.list_instances(frozenset({study}))) for study in self.found.studies}

        def holds(state: State) -> bool:
            copies = state["copies"]
            return len(copies) == 1 and len(copies[0]["instances"]) == sizes.get(copies[0]["of"])

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

    def retrieved(self, level: str) -> Fact:
        """Make the fact that the remote study is in the store, and was asked for as the goal says: STUDY or SERIES."""

        def holds(state: State) -> bool:
            moves = [job for job in state["jobs"].values() if job["Type"] == "DicomMoveScu"]
            asked = [query for job in moves if job["State"] == "Success" for query in job["Content"]["Query"]]
            return (
                {query.get("0020,000d") for job in moves for query in job["Content"]["Query"]} == {self.remote}
                and level in {query.get("0008,0052") for query in asked}
                and self.remote_instances <= set(state["store"]["instances"])
            )

        return now(f"the {level.lower()}, and no other, was retrieved from the server", holds)

    def arrives(self, state: State) -> Collection[str]:
        """Name the instances that a retrieval adds to the store."""
        return self.remote_instances

    def remote_series(self) -> Fact:
        def holds(state: State) -> bool:
            return state["page"] == "query-retrieve-3" and state["address"].get("uuid") == self.remote

        return now("the remote study's series are listed", holds)

    def filtered(self, page: str, key: str) -> Fact:
        text = str(self.case[key])
        words = f'the list was filtered for "{text}"'
        return now(words, lambda state: state["page"] == page and state["filter"].strip() == text)

    def looked_up(self) -> Fact:
        fields = self.case.get("lookup") or {"patient_id": self.case["s"].patient_id}

        def holds(before: State, after: State) -> bool:
            asked = [state["lookup"] if state["page"] == "lookup" else None for state in (before, after)]
            return asked == [fields, fields] and after["hasLookedUp"]

        return Fact(f"looked up by {', '.join(fields)}", holds)

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


def _keeps(*jobs: str, adds: Callable[[State], Collection[str]] = lambda state: (), protects: bool = False) -> Fact:
    """Make the fact that nothing but what the goal asks for has changed.

    Args:
        jobs: the kinds of job that the goal asks for; what others do is not looked at closely, so there must be none.
        adds: names the instances that the goal adds to the store in a state.
    """

    def holds(state: State) -> bool:
        return (
            sorted({*list_instances(), *adds(state)}) == state["store"]["instances"]
            and (protects or not state["store"]["protected"])
            and {job["Type"] for job in state["jobs"].values()} <= {*jobs, *READING_JOBS}
            and ("DicomModalityStore" in jobs or not [note for note in state["received"] if "instance" in note])
        )

    return now("nothing else in the store has changed, and nothing else was done", holds)


def _copied(state: State) -> Collection[str]:
    return [instance for copy in state["copies"] for instance in copy["instances"]]


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
READING_JOBS = ("Archive", "Media")  # a download
KEPT = _keeps()


def _end(state: State) -> bool:
    return state["isAtEnd"] and state["scrolled"] > 0


Make = Callable[[Asked], Check]


def _ends(*names: str) -> Make:
    """Make the check of a workflow that only goes somewhere and looks: what `Asked` calls `names` holds at the end."""
    return lambda a: Check([], [*(getattr(a, name)() for name in names), KEPT])


def _check_arrivals(a: Asked) -> Check:
    return Check([a.filtered("find-patients", key) for key in ("first", "second", "third")], [a.patient(), KEPT])


def _check_narrowing(a: Asked) -> Check:
    levels = {"find-patients": "text", "patient": "study_text", "study": "series_text"}
    return Check([a.filtered(page, key) for page, key in levels.items()], [a.series(), KEPT])


CHECKS: dict[str, Make] = {
    "browse_to_series": _ends("series"),
    "scroll_to_patient": _ends("tag"),
    "scroll_to_study": _ends("tag"),
    "lookup_by_id": lambda a: Check([a.looked_up()], [a.tag(), KEPT]),
    "lookup_by_two_fields": lambda a: Check([a.looked_up()], [a.series(), KEPT]),
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
        [a.anonymized(), _job("ResourceModification"), _keeps("ResourceModification", adds=_copied)],
    ),
    "protect_patient": lambda a: Check([a.protected()], [a.protected(), a.series(), _keeps(protects=True)]),
    "keep_study": lambda a: Check([a.asked("Delete this study?", "study")], [a.series(), KEPT]),
    "keep_series": lambda a: Check([a.asked("Delete this series?", "series")], [a.series(), KEPT]),
    "send_study": lambda a: Check(
        [a.sent_study(), _jobs("DicomModalityStore")],
        [a.sent_study(), _job("DicomModalityStore"), _keeps("DicomModalityStore")],
    ),
    "retrieve_series": lambda a: Check(
        [a.retrieved("SERIES")], [a.retrieved("SERIES"), a.remote_series(), _keeps("DicomMoveScu", adds=a.arrives)]
    ),
    "retrieve_study": lambda a: Check(
        [a.retrieved("STUDY")], [a.retrieved("STUDY"), a.arrived(), _keeps("DicomMoveScu", adds=a.arrives)]
    ),
    "echo_and_query": lambda a: Check([ECHO], [a.remote_series(), KEPT]),
    "narrow_down": _check_narrowing,
    "check_plugin": lambda a: Check([a.filtered("plugins", "plugin")], [a.series(), KEPT]),
    "lookup_and_narrow": lambda a: Check([a.looked_up(), a.filtered("lookup", "text")], [a.series(), KEPT]),
    "check_arrivals": _check_arrivals,
    "skim_patients": lambda a: Check([LIST_END, LIST_TOP], [a.patient(), KEPT]),
    "protect_and_send": lambda a: Check(
        [a.protected()],
        [
            a.protected(),
            a.sent_patient(),
            _page("jobs", "the job list is open"),
            _keeps("DicomModalityStore", protects=True),
        ],
    ),
    "lookup_and_keep_names": lambda a: Check(
        [a.looked_up(), a.asked("Anonymize this study?", "study")], [a.series(), KEPT]
    ),
}
