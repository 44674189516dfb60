// The steps of the page of data. It runs behind frame.js, which has what all pages share.
const CHUNK = { tasks: 40, targets: 90 }; // how many are made at once: more come as the reader gets there
const GRADES = { problem: "wrong", warning: "partial" };

const entries = data.tasks.flatMap((task) => {
  task.words = [task.id, task.goal, task.application, task.group].join("\n").toLowerCase();
  task.level = levelOf(task.notes.concat(...task.steps.map((step) => step.notes)));
  return task.steps.map((step, position) => {
    const texts = [`row ${step.row}`, step.image_id, step.action, step.target, ...step.arguments.flat(), ...step.notes.flat()];
    const notes = position ? step.notes : task.notes.concat(step.notes); // what is said of a task stands at its first step
    return { task, step, position, notes, level: levelOf(notes), words: texts.join("\n").toLowerCase() };
  });
});
for (const entry of entries) (entry.task.entries ??= []).push(entry);

function levelOf(notes) {
  if (notes.some(([level]) => level === "problem")) return "problem";
  return notes.length ? "warning" : "";
}
const gradeOf = (level) => GRADES[level] ?? "plain";
const sayAction = ({ action, target }) => `${action} ${target}`.trim() || "unreadable";

function fillShot(shot, { step }) {
  drawShot(shot, step, {
    alt: `Screenshot of row ${step.row}`,
    absent: `No screenshot: ${step.image_id || "none is named"}`,
    boxTitle: "The target's box",
    pointTitle: "The answer's point",
  });
}

function makeWhat(step) {
  const what = make("p", "what", make("strong", "", step.action || "unreadable"), " ", make("bdi", "", step.target));
  for (const [name, value] of step.arguments) what.append(make("span", "argument", `${name}: `, make("bdi", "", value)));
  for (const text of step.also_right ?? []) what.append(make("span", "argument", "also right: ", make("bdi", "", text)));
  return what;
}

function makeNotes(notes) {
  const items = notes.map(([level, kind, text]) => make("li", gradeOf(level), make("b", "", kind), make("bdi", "", text)));
  return items.length ? make("ul", "notes", ...items) : "";
}

const sayShot = ({ image_id, n_tokens }) => `[screenshot ${image_id}${n_tokens ? `: ${n_tokens[2].toLocaleString("en")} tokens` : ""}]`;

function makePassage(role, label, text) {
  return make("div", `passage ${role}`, make("span", "", label), text);
}

// What the model is given, in grey and black, and what it is trained to answer, in green.
function makePrompt(step) {
  const node = make("div", "model");
  let before = "";
  for (const [role, text] of step.prompt.map((number) => data.passages[number])) {
    const label = role === before ? "" : role;
    if (role !== "template") before = role;
    if (text === null) node.append(makePassage("", label, make("span", "muted", sayShot(step))));
    else if (role === "system") {
      const more = make("details", "", make("summary", "", text.split("\n")[0]), text);
      node.append(makePassage(role, label, more));
    } else if (role === "template") node.append(makePassage(role, "", make("span", "", text.trimEnd().replaceAll("\n", " ⏎ "))));
    else node.append(makePassage("", label, make("span", "", text)));
  }
  const answer = make("span", "", step.answer);
  if (data.turn_end) answer.append(make("span", "turn-end", data.turn_end));
  node.append(makePassage("trained", "trained on", answer));
  return node;
}

function makeCells(step) {
  const rows = step.cells.map(([name, text]) => make("tr", "", make("th", "", name), make("td", "", text)));
  return make("table", "cells", make("tbody", "", ...rows));
}

function makeDetails(entry) {
  const { task, step, position, notes } = entry;
  const said = [`row ${step.row}`];
  if (step.n_tokens) said.push(`${step.n_tokens[0].toLocaleString("en")} tokens given, ${step.n_tokens[1]} trained on`);
  const heading = make("h4", "", `Step ${position + 1} of ${task.steps.length}`, make("span", "muted", said.join(" · ")));
  if (task.is_bad) heading.append(make("span", "badge wrong", "not used: as it is in the file"));
  return [heading, makeWhat(step), makeNotes(notes), step.prompt ? makePrompt(step) : makeCells(step)];
}

function makeStep(entry) {
  const shot = make("button", "shot");
  shot.type = "button";
  shot.setAttribute("aria-label", `Enlarge row ${entry.step.row}`);
  shot.addEventListener("click", () => view(entry));
  fillShot(shot, entry);
  const node = make("article", "step", shot, make("div", "", ...makeDetails(entry)));
  return node;
}

function makeTask(task, chosen) {
  const about = [task.id || "no task id", task.application, task.group, `${task.steps.length} steps`].filter(Boolean).join(" · ");
  const cells = task.entries.map((entry) => {
    const cell = make("span", `cell ${gradeOf(entry.level)}`, entry.step.action[0] ?? "?");
    if (!chosen.has(entry)) cell.classList.add("other");
    cell.title = [`Step ${entry.position + 1}: ${sayAction(entry.step)}`, ...entry.notes.map(([, , text]) => text)].join("\n");
    return cell;
  });
  const text = make("div", "", make("div", "goal", task.goal || "(no goal)"), make("div", "about", about));
  const node = make("details", "task", make("summary", "", text, make("div", "strip", ...cells)));
  node.addEventListener("toggle", () => {
    if (node.open && node.children.length === 1) node.append(...task.entries.map(makeStep));
  });
  return node;
}

const placeOf = (point) => point && [point[0] / 10, point[1] / 10, 0, 0];

// The part of a picture to show around a target: [left, top, width, height] in pixels, in the shape of a card.
function cutAround({ box, point }, width, height) {
  const [left, top, across, down] = (box ?? placeOf(point) ?? [0, 0, 100, 100]).map((percent) => percent / 100);
  const most = Math.max(width, (height * 16) / 9);
  const isTarget = Boolean(box ?? point); // of a wide one the beginning is shown, where its text is
  const cut = isTarget ? Math.min(Math.max(1.5 * across, (2 * down * height) / width, 0.25), 0.45) * width : most;
  const tall = (cut * 9) / 16;
  const place = (from, share, size, whole) => {
    if (size > whole) return (whole - size) / 2;
    const wanted = share * whole > 0.9 * size ? from * whole - 0.05 * size : (from + share / 2) * whole - size / 2;
    return Math.min(Math.max(wanted, 0), whole - size);
  };
  return [place(left, across, cut, width), place(top, down, tall, height), cut, tall];
}

function fillCrop(crop, image, step) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const [x, y, cut, tall] = cutAround(step, width, height);
  const place = (node, [left, top, across, down]) => {
    node.style.left = `${((left / 100) * width - x) * (100 / cut)}%`;
    node.style.top = `${((top / 100) * height - y) * (100 / tall)}%`;
    if (across) node.style.width = `${(across * width) / cut}%`;
    if (down) node.style.height = `${(down * height) / tall}%`;
    crop.append(node);
  };
  place(image, [0, 0, 100, 100]);
  if (step.box) place(make("span", "gold-box"), step.box);
  if (step.point) place(make("span", "point gold-point"), placeOf(step.point));
}

function makeCard(entry) {
  const { step, task, notes, level } = entry;
  const crop = make("span", "crop");
  if (step.image === null) crop.append(make("span", "absent", `No screenshot: ${step.image_id}`));
  else {
    const image = make("img");
    image.alt = `Target of row ${step.row}`;
    image.loading = "lazy";
    image.addEventListener("load", () => fillCrop(crop, image, step), { once: true });
    image.src = urlOfImage(step.image);
    crop.append(image);
  }
  const caption = make("span", "caption", make("strong", "", step.action || "unreadable"), " ", make("bdi", "", step.target));
  caption.append(make("span", "muted", `row ${step.row} · ${task.id}`));
  for (const [, , text] of notes.slice(0, 2)) caption.append(make("span", `said-here ${gradeOf(level)}`, text));
  const card = make("button", `card ${level ? gradeOf(level) : ""}`, crop, caption);
  card.type = "button";
  card.addEventListener("click", () => view(entry));
  return card;
}

// The viewer turns the steps that the filters leave, in the order in which they are listed.
let viewed = -1;
function view(entry) {
  viewed = matches.indexOf(entry);
  const { task, step, level } = entry;
  const place = viewed < 0 ? "" : ` (${(viewed + 1).toLocaleString("en")} of ${matches.length.toLocaleString("en")})`;
  const state = make("span", `cell ${gradeOf(level)}`, step.action[0] ?? "?");
  byId("viewer-caption").replaceChildren(state, ` ${sayAction(step)}${place}`);
  fillShot(byId("viewer-shot"), entry);
  const about = [task.id, task.application, task.group].filter(Boolean).join(" · ");
  byId("viewer-step").replaceChildren(make("p", "goal", task.goal), make("p", "note", about), ...makeDetails(entry));
  if (!viewer.open) viewer.showModal();
}
onTurn((by) => {
  if (matches[viewed + by]) view(matches[viewed + by]);
});

const form = byId("filters");
let matches = [];
let waiting = [];
let makeNext = null;

function showMore(n) {
  const nodes = waiting.splice(0, n).map(makeNext);
  (byId("list").querySelector(".cards") ?? byId("list")).append(...nodes);
}

function filter() {
  const chosen = Object.fromEntries(new FormData(form));
  const text = chosen.text.trim().toLowerCase();
  const passes = ({ task, step, notes, level, words }) =>
    (!chosen.application || task.application === chosen.application) &&
    (!chosen.group || task.group === chosen.group) &&
    (!chosen.action || step.action === chosen.action) &&
    (!chosen.note || (chosen.note === "any" ? level : level === chosen.note || notes.some(([, kind]) => `kind ${kind}` === chosen.note))) &&
    (words.includes(text) || task.words.includes(text));
  matches = entries.filter(passes);
  if (chosen.order !== "file") {
    const key = ({ step }) => step.target.toLowerCase();
    const rank = chosen.order === "rare" ? (entry) => nOfTarget.get(key(entry)) : () => 0;
    matches.sort((a, b) => rank(a) - rank(b) || compare(key(a), key(b)) || compare(a.step.action, b.step.action));
  }
  const tasks = [...new Set(matches.map((entry) => entry.task))];
  const isTasks = chosen.view === "tasks";
  const among = new Set(matches);
  waiting = isTasks ? [...tasks] : [...matches];
  makeNext = isTasks ? (task) => makeTask(task, among) : makeCard;
  byId("list").replaceChildren(...(isTasks ? [] : [make("div", "cards")]));
  showMore(CHUNK[chosen.view]);
  if (isTasks && tasks.length === 1) byId("list").firstChild.open = true;
  const count = (n, all) => `${n.toLocaleString("en")} of ${all.toLocaleString("en")}`;
  byId("shown").textContent = `${count(matches.length, entries.length)} steps, ${count(tasks.length, data.tasks.length)} tasks`;
}
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

function countBy(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}
const nOfTarget = countBy(entries.map(({ step }) => step.target.toLowerCase()));

function findRow() {
  const row = Number(/^#row-(\d+)$/.exec(location.hash)?.[1]);
  const entry = entries.find(({ step }) => step.row === row);
  if (entry) view(entry);
}

if (form) {
  addOptions(form.elements.application, data.tasks.map((task) => task.application));
  addOptions(form.elements.group, data.tasks.map((task) => task.group));
  addOptions(form.elements.action, entries.map(({ step }) => step.action));
  const nOfLevel = countBy(entries.map(({ level }) => level));
  const nOfKind = countBy(entries.flatMap(({ notes }) => [...new Set(notes.map(([, kind]) => kind))]));
  for (const [value, title] of [["problem", "with problems"], ["warning", "with warnings"]]) {
    if (nOfLevel.get(value)) form.elements.note.append(new Option(`${title} (${nOfLevel.get(value)})`, value));
  }
  for (const [kind, n] of [...nOfKind].sort(([a], [b]) => compare(a, b))) {
    form.elements.note.append(new Option(`${kind} (${n})`, `kind ${kind}`));
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  const watch = new IntersectionObserver(
    ([{ isIntersecting }]) => {
      if (!isIntersecting || !waiting.length) return;
      showMore(CHUNK[form.elements.view.value]);
      watch.unobserve(byId("more"));
      watch.observe(byId("more")); // told again where the end is still in sight
    },
    { rootMargin: "1200px" },
  );
  document.addEventListener("click", (event) => {
    const bar = event.target.closest("[data-filter]");
    if (!bar) return;
    form.elements[bar.dataset.filter].value = bar.dataset.value;
    if (bar.dataset.view) form.elements.view.value = bar.dataset.view;
    filter();
    form.scrollIntoView();
  });
  filter();
  watch.observe(byId("more"));
  window.addEventListener("hashchange", findRow);
  findRow();
}
