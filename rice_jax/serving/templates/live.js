"use strict";
// Follows the events of a stream; `?stream=ID` in the page's address opens it.
const part = (id) => document.getElementById(id);
const KEPT = 3600, DRAW = 10_000, LOOK = 5000;  // seconds of the timeline; milliseconds between two drawings, and looks
const SPOKEN = 3, MAX_HEARD = 1000;  // sentences beside the present product, and that are kept
let stream = "", events = null, parts = [], timer = 0, looks = 0, missed = 0, heard = new Map();

const path = (more = "") => `streams/${encodeURIComponent(stream)}${more}`;
const frames = ({ frame }) => frame ? [{ time: frame.second, image: frame.image }] : [];
const isShown = (one) => one && one.gone === undefined;

function say(text, kind = "") {
  part("message").textContent = text;
  part("message").className = kind;
}

async function open(source) {
  close();
  parts = [];
  missed = 0;
  part("missed").textContent = "";
  heard = new Map();
  say("Connecting …", "busy");
  try {
    if (source) {
      const body = JSON.stringify({ url: source });
      const answer = await fetch(path("/source"), { method: "POST", body, headers: { "Content-Type": "application/json" } });
      if (!answer.ok) return say(`${(await answer.json()).detail}.`, "wrong");
    }
  } catch {
    return say("The server cannot be reached.", "wrong");
  }
  history.replaceState(null, "", `?stream=${encodeURIComponent(stream)}`);
  events = new EventSource(path("/events?after=0"));
  events.onmessage = ({ data }) => take(JSON.parse(data));
  timer = setInterval(draw, DRAW);
  looks = setInterval(look, LOOK);
  draw();
  look();
}

function close() {
  events?.close();
  events = null;
  clearInterval(timer);
  clearInterval(looks);
  part("present").hidden = part("stop").hidden = true;
}

function take(event) {
  const { product, products, confidence, second, seconds = 0 } = event, last = parts.at(-1), best = frames(event);
  if (event.event === "missed") {
    missed += event.events;
    part("missed").textContent =
      `${missed} earlier ${missed === 1 ? "event is" : "events are"} no longer kept, so parts may be missing.`;
    if (isShown(last)) last.gone = last.end;
  } else if (event.event === "gone" && isShown(last)) {
    Object.assign(last, { gone: second, confidence, frames: best.length ? best : last.frames });
  } else {  // a part that begins, or has ended and whose beginning was missed
    const since = Date.parse(event.time), gone = event.event === "gone" ? second : undefined;
    parts.push({ start: second - seconds, gone, product, products, confidence, since, frames: best, speech: [] });
  }
  draw();
}

function draw() {
  const last = parts.at(-1), now = isShown(last) ? last : null;
  const ends = (one) => one.gone ?? one.start + Math.max(0, Math.floor((Date.now() - one.since) / 1000));
  parts = parts.map((one) => ({ ...one, end: ends(one) })).filter((one) => isShown(one) || one.end > one.start);
  const newest = parts.at(-1)?.end ?? 0;
  parts = parts.filter((one) => one.end > newest - KEPT);
  part("present").hidden = !events;
  part("present").replaceChildren(...present(now), ...spoken());
  part("result").hidden = !parts.length;
  renderTimeline(part("timeline"), { timeline: parts });
}

function present(now) {
  if (!now) return [make("p", "soft", `${NONE[0].toUpperCase()}${NONE.slice(1)} is shown.`)];
  const words = make("div");
  words.append(make("h2", "", called(now.product)), make("p", "soft", now.product.id));
  if (now.confidence !== null) words.append(sureDetails(certainty(false, now.confidence), percent(now.confidence)));
  return [productPicture({ options: {} }, now.product), words];
}

function spoken() {
  const last = [...heard.values()].slice(-SPOKEN), words = make("blockquote", "soft");
  words.append(...last.map((text) => make("span", "", text)));
  return last.length ? [words] : [];
}

// What is said belongs to the product that is shown when the page hears of it.
function hear(speech) {
  const key = ({ start, text }) => `${start} ${text}`, now = parts.at(-1);
  const fresh = speech.filter((one) => !heard.has(key(one)));
  for (const one of fresh) {
    heard.set(key(one), one.text);
    if (isShown(now)) now.speech = [...now.speech, { start: now.end, text: one.text }];
  }
  if (heard.size > MAX_HEARD) heard = new Map([...heard].slice(-MAX_HEARD / 2));
  if (fresh.length) draw();
}

async function look() {
  try {
    const answer = await fetch(path()), found = await answer.json();
    if (!events) return;
    if (!answer.ok) {
      say(`${found.detail}.`, "wrong");
      return close();
    }
    part("stop").hidden = false;
    hear(found.speech);
    const { source } = found;
    if (!source) return say("Pictures of this stream are pushed.");
    const words = { connecting: "Connecting to", live: "Live:", waiting: "Waiting for", ended: "Ended:", failed: "Failed:" };
    const text = `${words[source.state]} ${source.url}${source.reason ? ` (${source.reason})` : ""}`;
    say(text, { connecting: "busy", waiting: "busy", failed: "wrong" }[source.state]);
    if (["ended", "failed"].includes(source.state)) events.close();
  } catch {
    say("The server cannot be reached.", "wrong");
  }
}

part("form").addEventListener("submit", (event) => {
  event.preventDefault();
  stream = part("stream").value;
  open(part("source").value.trim());
  part("source").value = "";
});
part("stop").addEventListener("click", async () => {
  await fetch(path(), { method: "DELETE" });
  look();
});
stream = new URLSearchParams(location.search).get("stream") ?? "";
part("stream").value = stream;
if (stream) open("");
