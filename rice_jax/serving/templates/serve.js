"use strict";
// Texts from the server or a file are inserted as text, never as HTML.
const part = (id) => document.getElementById(id);
const limits = JSON.parse(part("form").dataset.limits);
const MAX_PRODUCTS = 5000, PAGE = 500;  // to choose from; the ids of others can be typed
const SUBTITLES = /\.(srt|vtt|json)$/i, UNSAID = part("said").textContent;
let asked = null, last = [], addresses = [];
let said = null, isSent = false;  // the subtitles, and whether they were sent

// Subtitles go with the film beside them; alone, with the one that is shown or, if there is none, the next one.
function take(files) {
  const isSubtitle = (file) => SUBTITLES.test(file.name);
  const subtitles = files.filter(isSubtitle), films = files.filter((file) => !isSubtitle(file));
  if (subtitles.length > 1) return say("Choose one file of subtitles.", "wrong");
  if (subtitles.length) setSaid(subtitles[0]);
  else if (films.length && isSent) setSaid(null);
  recognize(films.length ? films : last);
}

function setSaid(file) {
  said = file;
  isSent = false;
  part("said").textContent = file ? file.name : UNSAID;
  part("said").className = file ? "chosen" : "";
  part("unsaid").hidden = !file;
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
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  if (said?.size > limits.subtitle_bytes) {
    const limit = megabytes(limits.subtitle_bytes);
    return say(`${said.name} has ${megabytes(said.size)} MB; the server’s limit is ${limit} MB.`, "wrong");
  }
  const size = [...files, ...(said ? [said] : [])].reduce((sum, file) => sum + file.size, 0);
  if (size > limits.upload_bytes) {
    return say(`This has ${megabytes(size)} MB; the server’s limit is ${megabytes(limits.upload_bytes)} MB.`, "wrong");
  }
  const form = new FormData();
  if (part("gallery")?.value) form.append("gallery", part("gallery").value.slice(1));
  for (const file of files) form.append(isVideo ? "video" : "frames", file);
  if (said) form.append("subtitles", new Blob([said], { type: "text/plain" }), said.name);
  isSent = said !== null;
  say(`Looking at ${files.length === 1 ? files[0].name : `${files.length} pictures`} …`, "busy");
  try {
    const answer = await fetch("recognize", { method: "POST", body: form, signal: ask.signal });
    const found = await answer.json();
    if (!answer.ok) return say(`${found.detail}.`, "wrong");
    show(found, files, isVideo);
    const looked = `${found.num_frames} ${found.num_frames === 1 ? "frame" : "frames"} looked at.`;
    say([looked, ...spoken(found), ...found.warnings.map((warning) => `Warning: ${warning}.`)].join(" "));
  } catch (error) {
    if (error.name !== "AbortError") say("The server cannot be reached, or has closed the connection.", "wrong");
  }
}

function spoken({ timeline, text_used: isUsed }) {
  if (timeline[0].speech === null) return [];
  const count = timeline.reduce((sum, one) => sum + one.speech.length, 0);
  const sentences = `${count} ${count === 1 ? "sentence is" : "sentences are"} said`;
  return [isUsed || !count ? `${sentences}.` : `${sentences}, which do not count in the scores.`];
}

function show(found, files, isVideo) {
  addresses.forEach(URL.revokeObjectURL);
  addresses = files.map((file) => URL.createObjectURL(file));
  const gallery = part("gallery")?.value;
  part("result").hidden = false;
  if (isVideo) {
    const [{ name, size }] = files;
    renderTimeline(part("timeline"), { ...found, name, film: `${name} ${size}` }, {
      film: addresses[0], products: () => listed(gallery),
    });
  } else {
    renderTimeline(part("timeline"), { ...found, timeline: found.timeline.map((one) => withFrames(one, found)) });
  }
  part("whole").hidden = isVideo;
  part("none").textContent = found.none === null
    ? "The most similar products." : `Probability that none of the shop’s products is shown: ${percent(found.none)}.`;
  part("products").replaceChildren(...found.products.map((product, place) => {
    const image = make("div", "image"), name = make("span", "name", called(product));
    const sure = product.confidence === null ? `score ${product.score.toFixed(3)}` : percent(product.confidence);
    name.title = product.id;
    image.append(productPicture({ options: {} }, product), make("b", "", `${place + 1}. ${sure}`), name);
    return image;
  }));
}

// The pictures of a clip are the frames of its parts, each as long as the others.
function withFrames(one, { timeline, num_frames: number }) {
  const seconds = timeline.at(-1).end / addresses.length;
  if (number !== addresses.length) return one;
  const frames = addresses.map((image, place) => ({ image, time: place * seconds }));
  return { ...one, frames: frames.filter(({ time }) => one.start <= time && time < one.end) };
}

async function listed(gallery) {
  const products = [], query = gallery ? `&gallery=${encodeURIComponent(gallery.slice(1))}` : "";
  let total = 1;
  try {
    while (products.length < Math.min(total, MAX_PRODUCTS)) {
      const page = await (await fetch(`products?limit=${PAGE}&offset=${products.length}${query}`)).json();
      products.push(...page.products);
      total = page.total;
    }
  } catch { /* ids can still be typed */ }
  return { products, complete: products.length === total };
}

for (const input of [part("file"), part("record"), part("subtitles")]) {
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";  // so that the same file can be chosen again
  });
}
addEventListener("dragover", (event) => { event.preventDefault(); part("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) part("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  take([...event.dataTransfer.files]);
});
part("unsaid").addEventListener("click", () => {
  setSaid(null);
  recognize(last);
});
part("gallery")?.addEventListener("change", () => recognize(last));
part("form").addEventListener("submit", (event) => event.preventDefault());
