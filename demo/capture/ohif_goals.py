"""How people ask for the OHIF tasks: several sentence shapes a workflow. Knows nothing of phases or pages."""

TEMPLATES = {"x": ["x"]}


def format_goal(workflow: str, number: int, slots: dict[str, str]) -> str:
    """Fill the wording of a workflow's task number `number` (0-based); wordings are used in turn."""
    templates = TEMPLATES.get(workflow, ["%s %d {spot}" % (workflow, number)])
    import collections
    return templates[number % len(templates)].format_map(collections.defaultdict(str, slots))
