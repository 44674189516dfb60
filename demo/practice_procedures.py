"""What people do in any desktop program: how a goal asks for it and the steps meant. Knows nothing of the demo."""

from dataclasses import dataclass

Steps = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Procedure:
    """A plan item: how a goal asks for it, and its steps as (action, target, text or direction, observation).

    `{x}` and `{y}` are parameters that the goal names; the target of a step may be one, too.
    """

    name: str
    wordings: tuple[str, ...]
    steps: Steps


def _procedure(name: str, wordings: str, *steps: str) -> Procedure:
    """Read `a | b | c` wordings and `ACTION > target > argument > observation` steps."""
    read = tuple(tuple(part.strip() for part in step.split(">")) for step in steps)
    return Procedure(name, tuple(w.strip() for w in wordings.split("|")), read)


PROCEDURES = (
    _procedure(
        "save file",
        "save it as {x} | store the file under the name {x} | keep a copy called {x} | write it to {x}",
        "CLICK > File > > file menu listed",
        "CLICK > Save as > > save dialog shown",
        "TEXT > File name > {x} > name entered",
        "CLICK > Save > > file saved",
    ),
    _procedure(
        "open file",
        "open {x} | load the file {x} | get {x} from the disk | bring up {x}",
        "CLICK > File > > file menu listed",
        "CLICK > Open > > file list shown",
        "CLICK > {x} > > file opened",
    ),
    _procedure(
        "search text",
        "search for {x} | find {x} | look where {x} stands | see whether {x} occurs",
        "TEXT > Search > {x} > search text entered",
        "CLICK > Find next > > first match shown",
    ),
    _procedure(
        "replace text",
        "replace {x} with {y} | change every {x} to {y} | put {y} in place of {x} | {y} should stand where {x} is now",
        "CLICK > Edit > > edit menu listed",
        "CLICK > Replace > > replace dialog shown",
        "TEXT > Find what > {x} > old text entered",
        "TEXT > Replace with > {y} > new text entered",
        "CLICK > Replace all > > text replaced",
    ),
    _procedure(
        "sign in",
        "sign in as {x} with {y} | log on as {x}, password {y} | use the account {x} ({y}) | user {x}, password {y}",
        "TEXT > User name > {x} > user entered",
        "TEXT > Password > {y} > password entered",
        "CLICK > Sign in > > home page shown",
    ),
    _procedure(
        "print page",
        "print it on {x} | send a print to {x} | I want it on paper from {x} | printer {x}",
        "CLICK > File > > file menu listed",
        "CLICK > Print > > print dialog shown",
        "CLICK > {x} > > printer chosen",
        "CLICK > OK > > page printed",
    ),
    _procedure(
        "enlarge drawing",
        "make the drawing bigger | enlarge the drawing | magnify the drawing | drawing: larger",
        "ZOOM > drawing > in > drawing larger",
    ),
    _procedure(
        "shrink drawing",
        "make the drawing smaller | reduce the drawing | zoom the drawing out | drawing: smaller",
        "ZOOM > drawing > out > drawing smaller",
    ),
    _procedure(
        "read on",
        "scroll the document down | read on in the document | go further down | next part of the document",
        "SCROLL > document > down > next part shown",
    ),
    _procedure(
        "read back",
        "scroll the document up | go back up in the document | return to the part before | previous part",
        "SCROLL > document > up > previous part shown",
    ),
    _procedure(
        "draw shape",
        "draw a {x} | add the shape {x} | sketch one {x} | put a {x} on the page",
        "CLICK > Insert > > insert menu listed",
        "CLICK > {x} > > shape chosen",
        "SEGMENT > {x} > > shape drawn",
    ),
    _procedure(
        "label shape",
        "label the shape {x} | write {x} on the shape | name the shape {x} | the shape is to be called {x}",
        "CLICK > Add text > > text field shown",
        "TEXT > Label > {x} > label entered",
        "CLICK > Apply > > label shown",
    ),
    _procedure(
        "set colour",
        "colour it {x} | use the colour {x} | make it {x} | paint it in {x}",
        "CLICK > Format > > format menu listed",
        "CLICK > Colour > > colours listed",
        "CLICK > {x} > > colour changed",
    ),
    _procedure(
        "choose font",
        "set the font {x} in size {y} | use {x}, {y} points | text in {x} at {y} | font {x}, size {y}",
        "CLICK > Format > > format menu listed",
        "CLICK > Font > > font dialog shown",
        "CLICK > {x} > > font chosen",
        "TEXT > Size > {y} > size entered",
        "CLICK > OK > > font changed",
    ),
    _procedure(
        "send message",
        "write {y} to {x} | tell {x} {y} | message {x}: {y} | {x} should get the message {y}",
        "CLICK > New message > > empty message shown",
        "TEXT > To > {x} > receiver entered",
        "TEXT > Message > {y} > message entered",
        "CLICK > Send > > message sent",
    ),
    _procedure(
        "sort table",
        "sort the table by {x} | order the rows by {x} | {x} decides the order | rows by {x}",
        "CLICK > Data > > data menu listed",
        "CLICK > Sort > > columns listed",
        "CLICK > {x} > > table sorted",
    ),
    _procedure(
        "filter table",
        "show only rows with {y} in {x} | keep the rows whose {x} is {y} | narrow {x} down to {y} | {x} = {y} only",
        "CLICK > {x} > > column menu listed",
        "TEXT > Filter > {y} > table filtered",
    ),
    _procedure(
        "open record",
        "open the record of {x} | go to {x} in the list | I need the entry {x} | show {x}",
        "SCROLL > list > down > later entries shown",
        "CLICK > {x} > > record shown",
    ),
    _procedure(
        "delete entry",
        "delete the entry {x} | remove {x} | get rid of {x} | {x} is to be deleted",
        "CLICK > {x} > > entry selected",
        "CLICK > Delete > > question shown",
        "CLICK > Yes > > entry deleted",
    ),
    _procedure(
        "undo change",
        "undo that | take the last change back | revert it | back to how it was",
        "CLICK > Edit > > edit menu listed",
        "CLICK > Undo > > change undone",
    ),
    _procedure(
        "split window",
        "show two panes | split the window | put two panes side by side | two panes",
        "CLICK > View > > view menu listed",
        "CLICK > Split > > two panes shown",
    ),
    _procedure(
        "measure distance",
        "measure the {x} | how long is the {x}; take the ruler | put the ruler on the {x} | ruler: {x}",
        "CLICK > Tools > > tools listed",
        "CLICK > Ruler > > ruler active",
        "SEGMENT > Ruler > > distance shown",
    ),
    _procedure(
        "add note",
        "add the note {x} | leave a note that says {x} | note {x} | remark: {x}",
        "CLICK > Notes > > notes shown",
        "TEXT > New note > {x} > note entered",
        "CLICK > Add > > note added",
    ),
    _procedure(
        "check history",
        "look at the history | check what was done before | history page | see the earlier versions",
        "CLICK > History > > history shown",
        "SCROLL > history > down > older versions shown",
    ),
)
