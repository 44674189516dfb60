// The task list of the report. It runs behind frame.js, which has what all pages share.
const SYMBOLS = { right: "✓", partial: "~", wrong: "✗", unreadable: "?", skipped: "–", done: "•" };

// A step is "partial" where the headline matcher says right and a stricter one says wrong.
// A step of a live run has no recorded answer to be compared with; it brings its grade (`live`).
function gradeOf(step) {
  if (step.live) return step.live.grade;
  const outcomes = data.matchers.map((name) => step.outcomes[name]);
  if (step.outcomes[data.headline] === "wrong") return "wrong";
  if (step.outcomes[data.headline] === "not_run") return "skipped";
  if (step.outcomes[data.headline] !== "right") return "unreadable";
  return outcomes.every((outcome) => outcome === "right") ? "right" : "partial";
}

function symbolOf(grade, label) {
  const cell = make("span", `cell ${grade}`, SYMBOLS[grade]);
  cell.title = label;
  return cell;
}

// What the viewer turns through: the steps, and behind them the screen after the last one where a task has it (`end`).
const screenAt = (task, position) => task.steps[position] ?? (position === task.steps.length ? task.end : null);
const nameOf = (task, position) => (task.steps[position] ? `step ${position + 1}` : "the end");

function fillShot(shot, task, position) {
  const step = screenAt(task, position);
  drawShot(shot, { ...step, point: step.gold?.point }, {
    alt: `Screenshot of ${nameOf(task, position)}`,
    absent: `Screenshot not found: ${step.image_id}`,
    boxTitle: "Target of the gold action",
    pointTitle: "Point of the gold action",
  });
  if (step.image === null) return;
  addPoint(shot, "predicted-point", step.predicted?.point, `${data.names ? data.names[0] : "Predicted"}: point`);
  if (step.other) addPoint(shot, "other-point", step.other.predicted?.point, `${data.names[1]}: point`);
  addPoint(shot, "executed-point", step.live?.point, "Where the action was done");
}

let viewed = null;
function view(task, position) {
  if (!screenAt(task, position)) return;
  viewed = { task, position };
  const step = task.steps[position];
  byId("viewer-caption").replaceChildren(...(step ? captionOf(task, step) : [`After the last step. ${task.about}`]));
  fillShot(byId("viewer-shot"), task, position);
  if (!viewer.open) viewer.showModal();
}
onTurn((by) => view(viewed.task, viewed.position + by));

function captionOf(task, step) {
  const say = (action) => (action ? `${action.action} ${action.target}`.trim() : "no readable answer");
  const judged = step.live
    ? `${say(step.predicted)}: ${step.live.outcome}`
    : `Gold: ${say(step.gold)}. Predicted: ${say(step.predicted)}`;
  return [symbolOf(gradeOf(step), ""), ` Step ${step.index + 1} of ${task.steps.length}. ${judged}`];
}

function makeAction(label, action, grade, lands = null) {
  const node = make("div", grade ? `action judged ${grade}` : "action", make("span", "label", label));
  if (!action) {
    node.append("no readable answer");
    return node;
  }
  const { action: kind, target, ...others } = action;
  node.append(make("strong", "", kind), " ", make("bdi", "", target ?? ""));
  for (const [name, value] of Object.entries(others)) {
    const place = name === "point" && lands !== null ? `, ${lands ? "in" : "outside"} the box` : "";
    node.append(make("span", "argument", `${name}: `, make("bdi", "", Array.isArray(value) ? asText(value) : String(value)), place));
  }
  return node;
}

const asWords = (name) => name.replaceAll("_", " ");
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value) ?? "");

function makeValue(value, other, markOfNew) {
  if (value === undefined) return "";
  if (!Array.isArray(value)) return asText(value);
  const others = new Set((Array.isArray(other) ? other : []).map(asText));
  const items = value.map((item) => make("li", others.has(asText(item)) ? "" : markOfNew, asText(item)));
  return make("ul", "", ...items);
}

function makeMemory(before, after, names) {
  const table = make("table", "memory");
  table.append(make("thead", "", make("tr", "", ...["Memory", ...names].map((text) => make("th", "", text)))));
  const body = table.appendChild(make("tbody"));
  for (const part of ["short_term", "long_term"]) {
    const [old, now] = [before[part] ?? {}, after[part] ?? {}];
    const keys = [...new Set([...Object.keys(old), ...Object.keys(now)])];
    const head = make("th", "", `${part.replace("_", "-")} memory${keys.length ? "" : ": empty"}`);
    head.colSpan = 3;
    body.append(make("tr", "part", head));
    for (const key of keys) {
      const isSame = asText(old[key]) === asText(now[key]);
      const row = make("tr", isSame ? "same" : "changed", make("th", "", key));
      const cell = make("td", "", makeValue(old[key], isSame ? old[key] : now[key], "removed"));
      row.append(cell);
      if (isSame) cell.colSpan = 2;
      else row.append(make("td", "", makeValue(now[key], old[key], "added")));
      body.append(row);
    }
  }
  return table;
}

function makeShot(task, position) {
  const { image } = screenAt(task, position);
  const shot = make(image === null ? "div" : "button", "shot");
  fillShot(shot, task, position);
  if (image !== null) {
    shot.type = "button";
    shot.setAttribute("aria-label", `Enlarge the screenshot of ${nameOf(task, position)}`);
    shot.addEventListener("click", () => view(task, position));
  }
  return shot;
}

function makeEnd(task) {
  const told = make("div", "", make("h4", "", "After the last step"));
  return make("article", "step", makeShot(task, task.steps.length), told);
}

function makeStep(task, position) {
  const step = task.steps[position];
  const grade = gradeOf(step);
  const shot = makeShot(task, position);
  const judge = ({ outcomes, roots }) =>
    data.matchers.map((name) => `${name}: ${outcomes[name]}${roots[name] ? ` (${asWords(roots[name])})` : ""}`).join(" · ");
  const verdict = step.live ? step.live.outcome : judge(step);
  const heading = make("h4", "", symbolOf(grade, ""), `Step ${step.index + 1}`, make("span", "verdict", verdict));
  if (step.other) heading.append(make("span", "verdict", `${data.names[1]} ${judge(step.other)}`));
  if (step.live && step.live.description) heading.append(make("span", "verdict", make("bdi", "", step.live.description)));
  const gold = makeAction("Gold", step.gold, "");
  for (const action of step.also_right) gold.append(...makeAction("also right", action, "").childNodes);
  const predicted = makeAction(`${data.names ? data.names[0] : "Predicted"} ${SYMBOLS[grade]}`, step.predicted, grade, step.lands);
  const actions = make("div", "actions", ...(step.live ? [] : [gold]), predicted);
  if (step.other) {
    const otherGrade = gradeOf(step.other);
    actions.append(makeAction(`${data.names[1]} ${SYMBOLS[otherGrade]}`, step.other.predicted, otherGrade, step.other.lands));
  }
  const body = make("div", "", heading, actions);
  if (step.live) {
    if (step.live.reason) body.append(make("p", "note", step.live.reason));
    if (step.live.verdict) body.append(make("p", "note", `The program: ${step.live.verdict}`));
  }
  const problem = step.error ?? step.parse_problem;
  if (problem) body.append(make("p", "note", `${step.error ? "error" : step.parse_status}: ${problem}`));
  body.append(makeMemory(step.memory_before, step.memory_after, ["before", "after"]));
  if (step.recorded_memory) {
    const compared = makeMemory(step.memory_before, step.recorded_memory, ["shown", "recorded"]);
    body.append(make("details", "fold", make("summary", "", "Memory shown, and the recorded one"), compared));
  }
  const raw = make("pre", "", step.raw_text || "(empty)");
  const reason = step.finish_reason ? `Raw answer (stopped by: ${step.finish_reason})` : "Raw answer";
  body.append(make("details", "fold", make("summary", "", reason), raw));
  return make("article", "step", shot, body);
}

function makeTask(task) {
  const right = task.about ?? data.matchers.map((name) => `${name} ${task.n_right[name]} of ${task.n_steps}`).join(", ");
  const about = [task.task_id, task.application, task.group, right].filter(Boolean).join(" · ");
  const cells = task.steps.map((step) => {
    const grade = gradeOf(step);
    return symbolOf(grade, `Step ${step.index + 1}: ${step.live ? step.live.outcome : `gold ${step.gold.action}, ${grade}`}`);
  });
  const text = make("div", "", make("div", "goal", task.goal), make("div", "about", about));
  const node = make("details", "task", make("summary", "", text, make("div", "strip", ...cells)));
  node.addEventListener("toggle", () => {
    if (!node.open || node.children.length > 1) return;
    node.append(...task.steps.map((_, i) => makeStep(task, i)), ...(task.end ? [makeEnd(task)] : []));
  });
  return node;
}

const entries = data.tasks.map((task) => ({
  task,
  node: makeTask(task),
  words: [task.task_id, task.goal, ...task.steps.flatMap((step) => [step.gold, step.predicted].filter(Boolean).map(asText))]
    .join("\n")
    .toLowerCase(),
}));
byId("task-list").append(...entries.map((entry) => entry.node));

const form = byId("filters");
addOptions(form.elements.application, data.tasks.map((task) => task.application));
addOptions(form.elements.group, data.tasks.map((task) => task.group));
form.elements.matcher.append(...data.matchers.map((name) => new Option(name, name)));

// Of two runs side by side, the errors of either may have a root.
function hasRoot(task, matcher, root) {
  return task.steps.some((step) => [step, step.other ?? step].some(({ roots }) => roots[matcher] === root));
}

function filter() {
  const chosen = Object.fromEntries(new FormData(form));
  const text = chosen.text.trim().toLowerCase();
  let shown = 0;
  for (const { task, node, words } of entries) {
    const isRight = task.n_right[chosen.matcher] === task.n_steps;
    node.hidden = !(
      (chosen.verdict === "all" || isRight === (chosen.verdict === "right")) &&
      (!chosen.application || task.application === chosen.application) &&
      (!chosen.group || task.group === chosen.group) &&
      (!chosen.result || task.result === chosen.result) &&
      (!chosen.root || hasRoot(task, chosen.matcher, chosen.root)) &&
      words.includes(text)
    );
    shown += !node.hidden;
  }
  byId("shown").textContent = `${shown} of ${entries.length} tasks`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();
