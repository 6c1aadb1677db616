"use strict";
// Texts from the server or a file are inserted as text, never as HTML.
const part = (id) => document.getElementById(id);
const limits = JSON.parse(part("form").dataset.limits);
const video = part("video");
let asked = null, last = [], address = null, segments = [];

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function clock(seconds) {
  const whole = Math.round(seconds), pad = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return (hours ? `${hours}:${pad(minutes)}` : minutes) + ":" + pad(whole % 60);
}

const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
const certainty = ({ confidence, score }) =>
  confidence === null ? (score === undefined ? "" : `similarity ${score.toFixed(3)}`) : `${percent(confidence)} sure`;

const called = ({ title, id }) => title || id;

function picture(product) {
  const made = element("img");
  made.alt = called(product);
  made.loading = "lazy";
  made.addEventListener("error", () => made.replaceWith(element("span", "nopicture", "no picture")));
  made.src = product.image;
  return made;
}

function say(text, kind = "") {
  part("message").textContent = text;
  part("message").className = kind;
}

async function recognize(files) {
  if (!files.length) return;
  asked?.abort();
  last = files;
  const ask = asked = new AbortController();
  const isVideo = files.length === 1 && !files[0].type.startsWith("image/");
  part("result").hidden = true;
  const size = files.reduce((sum, file) => sum + file.size, 0), megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  if (size > limits.upload_bytes) {
    return say(`This has ${megabytes(size)} MB; the server’s limit is ${megabytes(limits.upload_bytes)} MB.`, "wrong");
  }
  const form = new FormData();
  if (part("gallery")?.value) form.append("gallery", part("gallery").value.slice(1));
  for (const file of files) form.append(isVideo ? "video" : "frames", file);
  say(isVideo ? `Looking at ${files[0].name} …` : `Looking at ${files.length} pictures …`, "busy");
  try {
    const answer = await fetch("recognize", { method: "POST", body: form, signal: ask.signal });
    const found = await answer.json();
    if (!answer.ok) return say(`${found.detail}.`, "wrong");
    show(found, isVideo ? files[0] : null);
    const looked = `${found.num_frames} ${found.num_frames === 1 ? "frame" : "frames"} looked at.`;
    say([looked, ...found.warnings.map((warning) => `Warning: ${warning}.`)].join(" "));
  } catch (error) {
    if (error.name !== "AbortError") say("The server cannot be reached, or has closed the connection.", "wrong");
  }
}

function show(found, file) {
  if (address) URL.revokeObjectURL(address);
  address = file && URL.createObjectURL(file);
  video.hidden = !file;
  if (file) video.src = address; else video.removeAttribute("src");
  const start = found.timeline[0].start, end = found.timeline.at(-1).end;
  const share = (time) => `${100 * (time - start) / (end - start)}%`;
  const own = new Map();  // a color for each product
  const now = element("i");
  now.hidden = !file;
  segments = found.timeline.map((segment) => {
    const { product } = segment, key = product && `${product.gallery}\n${product.id}`;
    if (product && !own.has(key)) own.set(key, `hsl(${(210 + 137.5 * own.size) % 360} 65% 68%)`);
    const name = product ? called(product) : "none of the shop’s products";
    const bar = element("button", product ? "" : "none", name);
    bar.title = `${clock(segment.start)} – ${clock(segment.end)} ${name}`;
    bar.style.left = share(segment.start);
    bar.style.width = `calc(${share(segment.end)} - ${share(segment.start)})`;
    const item = element("li", product ? "" : "none"), button = element("button"), words = element("div");
    words.append(element("span", "when", `${clock(segment.start)} – ${clock(segment.end)}`), element("b", "", name));
    if (product?.title) words.append(element("small", "", product.id));
    const sure = certainty({ confidence: segment.confidence, score: product?.score });
    words.append(element("small", "sure", sure));
    if (!product) words.append(element("small", "", `most similar: ${segment.products.map(called).join("; ")}`));
    if (product) button.append(picture(product));
    button.append(words);
    item.append(button);
    for (const one of [bar, button]) {
      if (product) one.style.setProperty("--own", own.get(key));
      one.type = "button";
      one.addEventListener("click", () => { video.currentTime = segment.start; });
    }
    return { ...segment, bar, item };
  });
  part("bar").replaceChildren(...segments.map(({ bar }) => bar), now);
  part("segments").replaceChildren(...segments.map(({ item }) => item));
  part("first").textContent = clock(start);
  part("last").textContent = clock(end);
  part("whole").textContent = found.none === null
    ? "The most similar products." : `Probability that none of the shop’s products is shown: ${percent(found.none)}.`;
  part("products").replaceChildren(...found.products.map((product, place) => {
    const image = element("div", "image"), name = element("span", "name", called(product));
    name.title = product.id;
    image.append(picture(product), element("b", "", `${place + 1}. ${certainty(product)}`), name);
    return image;
  }));
  video.ontimeupdate = () => {
    const time = video.currentTime + 0.01;  // players round times
    now.style.left = share(Math.max(start, Math.min(time, end)));
    for (const { start, end, item } of segments) item.classList.toggle("now", start <= time && time < end);
  };
  part("result").hidden = false;
}

part("file").addEventListener("change", () => {
  recognize([...part("file").files]);
  part("file").value = "";  // so that the same file can be chosen again
});
addEventListener("dragover", (event) => { event.preventDefault(); part("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) part("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  recognize([...event.dataTransfer.files]);
});
part("gallery")?.addEventListener("change", () => recognize(last));
part("form").addEventListener("submit", (event) => event.preventDefault());
