"use strict";
/* Right or wrong: labels of a timeline's parts, and the files that a timeline is downloaded as.

   A label is what a part was taken for, and which product it shows: its id, "" for none, null for another one that is
   not known yet. Labels are remembered by film and index. */

const labelsKey = (result) => `rice labels ${result.index} ${result.film ?? result.name}`;
const labelOf = (state, part) => {
  const label = state.labels[part.start];
  return label && label.shown === shownBy(part) ? label : undefined;
};

function readLabels(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {};  // the browser keeps nothing
  }
}

function setLabel(state, part, card, product) {
  if (labelOf(state, part)?.product === product) delete state.labels[part.start];
  else state.labels[part.start] = { shown: shownBy(part), product };
  try {
    localStorage.setItem(labelsKey(state.result), JSON.stringify(state.labels));
  } catch { /* the browser keeps nothing, so labels last as long as the page */ }
  showLabel(state, part, card);
  countLabels(state);
}

function addJudgment(state, part, card) {
  const line = make("div", "judgment"), choice = make("div", "choice"), shown = shownBy(part);
  const right = makeButton("right", "Right", () => setLabel(state, part, card, shown));
  const wrong = makeButton("wrong", "Wrong", () => {
    const label = labelOf(state, part);
    if (label && label.product !== shown) setLabel(state, part, card, label.product); // takes it back
    else setLabel(state, part, card, null);
  });
  const none = makeButton("none", NONE, () => setLabel(state, part, card, ""));
  const other = make("input", "", "", { type: "text", placeholder: "id or title", autocomplete: "off" });
  other.setAttribute("list", "products-to-choose");
  other.ariaLabel = "id or title of the product that is shown";
  other.addEventListener("focus", () => listProducts(state));
  other.addEventListener("input", () => other.setCustomValidity(""));
  other.addEventListener("change", () => {
    const text = other.value.trim();
    if (!text) return;
    const id = idOf(state, text);
    if (id === null) {
      other.setCustomValidity("The shop has no product with this id or title.");
      return void other.reportValidity();
    }
    if (labelOf(state, part)?.product !== id) setLabel(state, part, card, id);
  });
  choice.append(make("span", "", "Choose a similar product,"), ...(part.product ? [none, "or"] : ["or"]), other);
  line.append(right, wrong, make("span", "told"), choice);
  for (const [name, one] of Object.entries({ right, wrong, none, other })) one.dataset.key = `${name} ${part.start}`;
  card.append(line);
  showLabel(state, part, card);
}

function showLabel(state, part, card) {
  const label = labelOf(state, part), shown = shownBy(part);
  const press = (one, pressed) => { one.ariaPressed = String(Boolean(pressed)); };
  const isWrong = label && label.product !== shown;
  press(card.querySelector(".judgment .right"), label && !isWrong);
  press(card.querySelector(".judgment .wrong"), isWrong);
  const none = card.querySelector(".judgment button.none");
  if (none) press(none, label?.product === "");
  for (const one of card.querySelectorAll(".runners button")) press(one, label?.product === one.dataset.product);
  card.querySelector(".choice").hidden = !isWrong;
  const product = label?.product === null ? "which one is it?" : label?.product || NONE;
  card.querySelector(".told").textContent = isWrong ? product : "";
}

async function listProducts(state) {
  if (state.known) return;
  state.known = { products: [], complete: false };
  state.known = await (state.options.products?.() ?? state.known);
  const { products } = state.known, id = "products-to-choose";
  const list = document.getElementById(id) ?? make("datalist", "", "", { id });
  list.replaceChildren(...products.map(({ id, title }) => make("option", "", title, { value: id })));
  document.body.append(list);
}

// The id of the product that a text names by its id or, if only one has it, its title; null = the shop has none.
function idOf(state, text) {
  const { products, complete } = state.known ?? { products: [], complete: false };
  if (products.some(({ id }) => id === text)) return text;
  const ids = new Set(products.filter(({ title }) => title === text).map(({ id }) => id));
  if (ids.size === 1) return [...ids][0];
  return complete ? null : text;
}

// What is downloaded.

function labelLine(state) {
  const line = make("p", "downloads");
  const button = makeButton("labels", "Download labels (CSV)", () => {
    download(state, "labels.csv", labelsCsv(state), "text/csv");
  });
  button.dataset.key = "labels";
  line.append(button, make("span", "soft count"));
  state.labelLine = line;
  countLabels(state);
  return line;
}

function countLabels(state) {
  const { timeline } = state.result, labels = timeline.map((part) => labelOf(state, part)).filter(Boolean);
  const unknown = labels.filter(({ product }) => product === null).length;
  const told = `${labels.length - unknown} of ${timeline.length} ${timeline.length === 1 ? "part" : "parts"} labeled`;
  state.labelLine.querySelector(".count").textContent =
    unknown ? `${told}; ${unknown} wrong without a product, left out` : told;
  state.labelLine.querySelector("button").disabled = labels.length === unknown;
}

function downloadLine(state) {
  const line = make("p", "downloads"), { result } = state;
  const files = {
    JSON: ["json", () => timelineJson(result), "application/json"],
    CSV: ["csv", () => timelineCsv(result), "text/csv"],
    "chapters (WebVTT)": ["vtt", () => chapters(result), "text/vtt"],
  };
  line.append(make("span", "", "Download the timeline:"));
  for (const [name, [suffix, text, type]] of Object.entries(files)) {
    const button = makeButton("", name, () => download(state, suffix, text(), type));
    button.dataset.key = name;
    line.append(button);
  }
  return line;
}

function download(state, suffix, text, type) {
  const stem = (state.result.name ?? "timeline").replace(/\.[^.]*$/, "").replace(/[\\/:*?"<>|\s]+/g, "-").slice(0, 80);
  const link = make("a", "", "", { href: URL.createObjectURL(new Blob([text], { type })), download: `${stem}.${suffix}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const csvCell = (text) => /[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
// With a byte order mark, spreadsheets read UTF-8.
const csv = (rows) => "\ufeff" + rows.map((row) => row.map((cell) => csvCell(String(cell))).join(",") + "\r\n").join("");

function labelsCsv(state) {
  const { result } = state;
  const clip = /^[\s=+@-]/.test(result.name) ? `./${result.name}` : result.name;  // no formula for a spreadsheet
  const rows = result.timeline.map((part) => [part, labelOf(state, part)?.product ?? null]);
  return csv([
    ["clip", "product", "start", "end"],
    ...rows.filter(([, product]) => product !== null)
      .map(([part, product]) => [clip, product, part.start, part.end]),
  ]);
}

// A spreadsheet takes a text with an apostrophe for no formula.
const plainText = (text) => /^\s*[=+@-]/.test(text) ? `'${text}` : text;

function timelineCsv({ timeline }) {
  const rows = timeline.map(({ start, end, product, confidence }) => [
    start, end, ...[product?.id, product?.gallery, product?.title].map((text) => plainText(text ?? "")),
    product?.score ?? "", confidence ?? "",
  ]);
  return csv([["start", "end", "product", "gallery", "title", "score", "confidence"], ...rows]);
}

function timelineJson({ name, timeline }) {
  const plain = (key, value) => key === "frames" || key === "image" ? undefined : value;
  return JSON.stringify({ timeline, film: name }, plain, 1) + "\n";
}

function chapters({ timeline }) {
  const pad = (number, size = 2) => String(number).padStart(size, "0");
  const stamp = (time) => {
    const whole = Math.round(1000 * time);
    const [hours, minutes, rest] = [Math.floor(whole / 3600000), Math.floor(whole / 60000) % 60, whole % 60000];
    return `${pad(hours)}:${pad(minutes)}:${pad(Math.floor(rest / 1000))}.${pad(rest % 1000, 3)}`;
  };
  const text = (product) => called(product).replace(/\s+/g, " ")
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const cues = timeline.filter(({ product }) => product)
    .map(({ start, end, product }) => `\n${stamp(start)} --> ${stamp(end)}\n${text(product)}\n`);
  return `WEBVTT\n${cues.join("")}`;
}
