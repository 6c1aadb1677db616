"use strict";
/* The products of a film over time, for every page that shows them.

   renderTimeline(element, result, options) shows a result in an element; call it again when there is more.

   result: `timeline`, the parts as POST /recognize answers them; a part may have `frames`, [{time, image}], and `speech`,
           [{start, text}].
           `name`, the film's file, which labels are written for; without it there are none. `film`, what tells films
           of one name apart, and `index`, what tells indexes apart. `named_from`, the similarity from which a product is
           named, or null.
   options: `film`, the address of the film; `choosesFilm`, whether the reader may open it.
            `products`, an async function that returns all products of the shop, [{id, title}].
            `showPicture(image, picture)` puts a picture of the result into an <img>; the default sets its address.

   Texts of a result are inserted as text, never as HTML. */

const LIKELY = 0.5;  // least confidence that is called so
const NUM_FRAMES = 6;  // of a part, taken from the film
const NUM_TICKS = 6;  // of the bar, about
const NONE = "none of the shop’s products";
const timelines = new WeakMap();  // element: what stays from one call to the next

function make(tag, className = "", text = "", more = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return Object.assign(made, more);
}

function makeButton(className, text, click) {
  return make("button", className, text, { type: "button", onclick: click });
}

function clock(seconds) {
  const tenths = Math.round(10 * seconds), pad = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(tenths / 36000), minutes = Math.floor(tenths / 600) % 60, rest = tenths % 600;
  const start = hours ? `${hours}:${pad(minutes)}` : String(minutes);
  return `${start}:${pad(Math.floor(rest / 10))}${rest % 10 ? `.${rest % 10}` : ""}`;
}

const called = (product) => product ? product.title || product.id : NONE;
const shownBy = (part) => part.product ? part.product.id : "";
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}\u00a0%`;
const range = (part) => `${clock(part.start)} – ${clock(part.end)}`;

function certainty(isNone, confidence) {
  if (confidence === null) return "";
  return isNone ? "none" : confidence >= LIKELY ? "likely" : "unsure";
}

function renderTimeline(element, result, options = {}) {
  const parts = result.timeline;
  const state = timelines.get(element) ?? { captured: new Map(), made: new Map() };
  timelines.set(element, state);
  if (state.film !== options.film) {
    Object.assign(state, { film: options.film, video: null, captured: new Map(), made: new Map(), known: null });
  }
  const key = labelsKey(result);
  if (state.key !== key) Object.assign(state, { key, labels: readLabels(key), made: new Map() });
  Object.assign(state, { result, options });
  const focused = element.contains(document.activeElement) && document.activeElement.dataset.key;
  element.classList.add("timeline");
  if (!parts.length) return element.replaceChildren(make("p", "soft", "Nothing has been shown yet."));
  colorProducts(state);
  state.made = new Map(parts.map((part) => [part.start, keptCard(state, part)]));
  const film = filmBox(state, element), told = make("div");
  told.append(timeBar(state), make("p", "soft", summary(parts)), productTable(state), partList(state));
  told.append(...(result.name ? [labelLine(state)] : []), downloadLine(state));
  element.replaceChildren(...film, told);
  if (focused) element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  markNow(state);
}

// The film and the bar.

function timeBar(state) {
  const { timeline } = state.result, start = timeline[0].start, end = timeline.at(-1).end;
  const percentOf = (time) => `${100 * (time - start) / Math.max(end - start, 1e-9)}%`;
  const bar = make("div", "timebar"), scale = make("div", "ticks");
  for (const part of timeline) {
    const one = makeButton(part.product ? "" : "none", "", () => goTo(state, part));
    one.append(make("span", "", part.product ? called(part.product) : "none"));
    one.title = `${range(part)} ${called(part.product)}`;
    one.dataset.key = `bar ${part.start}`;
    one.style.left = percentOf(part.start);
    one.style.width = `calc(${percentOf(part.end)} - ${percentOf(part.start)})`;
    one.style.setProperty("--sure", part.confidence ?? 1);
    paint(state, one, part.product);
    bar.append(one);
  }
  state.now = make("i");
  state.place = (time) => percentOf(Math.max(start, Math.min(time, end)));
  bar.append(state.now);
  for (const time of ticks(start, end)) {
    const tick = make("span", "", clock(time));
    tick.style.left = percentOf(time);
    scale.append(tick);
  }
  scale.ariaHidden = "true";
  const box = make("div", "bars");
  box.append(bar, scale);
  return box;
}

function summary(timeline) {
  const seconds = (parts) => parts.reduce((sum, part) => sum + part.end - part.start, 0);
  const named = new Set(timeline.filter((part) => part.product).map((part) => productKey(part.product)));
  const none = seconds(timeline.filter((part) => !part.product));
  const products = `${named.size} ${named.size === 1 ? "product" : "products"}`;
  const words = `${products} in ${clock(timeline.at(-1).end - timeline[0].start)}${none ? `, of which ${clock(none)} show ${NONE}` : ""}.`;
  if (timeline[0].confidence !== null) return words;
  return `${words} The index has no calibration, so there are no confidences, and every part shows some product.`;
}

function ticks(start, end) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const step = steps.find((step) => (end - start) / step <= NUM_TICKS) ?? steps.at(-1), times = [];
  const last = end - 0.1 * (end - start);  // on a phone, the text of a later one would not fit
  for (let time = step * Math.ceil(start / step); time <= last; time += step) times.push(time);
  return times;
}

function filmBox(state, element) {
  const { options, result } = state;
  if (options.film) {
    if (!state.video) {
      state.video = make("video", "", "", { controls: true, muted: true, playsInline: true, src: options.film });
      state.video.addEventListener("timeupdate", () => markNow(state));
      state.video.addEventListener("error", () => state.video.replaceWith(
        make("p", "soft", "This browser cannot play the film.")));
    }
    return [state.video];
  }
  if (!options.choosesFilm) return [];
  const label = make("label", "openfilm", "Open the film to play it here"), input = make("input");
  Object.assign(input, { type: "file", accept: "video/*" });
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) renderTimeline(element, result, { ...options, film: URL.createObjectURL(file) });
  });
  label.append(input);
  return [label];
}

function goTo(state, part) {
  const { card } = state.made.get(part.start);
  if (!state.video?.isConnected) {
    card.scrollIntoView({ block: "nearest" });
    return card.querySelector("button").focus({ preventScroll: true });
  }
  state.video.currentTime = part.start;
  if (state.video.getBoundingClientRect().bottom < 0) state.video.scrollIntoView();
  markNow(state);
}

function markNow(state) {
  const { video, now, made, place, result } = state;
  now.hidden = !video?.isConnected;
  if (now.hidden) return;
  const time = video.currentTime + 0.01;  // players round times
  now.style.left = place(time);
  for (const { start, end } of result.timeline) {
    made.get(start).card.classList.toggle("now", start <= time && time < end);
  }
}

// Products: their colors, pictures, and the table of them.

const productKey = (product) => product && `${product.gallery}\n${product.id}`;

function colorProducts(state) {
  state.hues = new Map();
  for (const { product } of state.result.timeline) {
    const key = productKey(product);
    if (product && !state.hues.has(key)) state.hues.set(key, (210 + 137.5 * state.hues.size) % 360);
  }
}

function paint(state, element, product) {
  if (product) element.style.setProperty("--hue", state.hues.get(productKey(product)));
}

const noPicture = () => make("span", "nopicture", "no picture");
const productPicture = (state, product) => pictureBox(state, product.image, { alt: called(product), loading: "lazy" });

// A picture of the result, or words where there is none or it is no longer there.
function pictureBox(state, picture, more) {
  if (picture === undefined || picture === null) return noPicture();
  const image = make("img", "", "", more);
  image.addEventListener("error", () => image.replaceWith(noPicture()));
  if (state.options.showPicture) state.options.showPicture(image, picture);
  else image.src = picture;
  return image;
}

function productTable(state) {
  const rows = new Map();
  for (const part of state.result.timeline) {
    const key = productKey(part.product) ?? "";
    const row = rows.get(key) ?? { product: part.product, first: part, count: 0, seconds: 0, sure: 0 };
    row.count += 1;
    row.seconds += part.end - part.start;
    row.sure = part.confidence === null ? null : row.sure + part.confidence * (part.end - part.start);
    rows.set(key, row);
  }
  const table = make("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  for (const name of ["product", "total time", "parts", "certainty"]) head.append(make("th", "", name, { scope: "col" }));
  const order = [...rows.values()].sort((a, b) => !a.product - !b.product || b.seconds - a.seconds);
  for (const { product, first, count, seconds, sure } of order) {
    const line = body.insertRow(), name = makeButton("name", "", () => goTo(state, first));
    const swatch = make("i", product ? "" : "none");
    paint(state, swatch, product);
    name.append(swatch, make("span", "", called(product)));
    name.dataset.key = `row ${productKey(product)}`;
    line.insertCell().append(name);
    line.insertCell().textContent = clock(seconds);
    line.insertCell().textContent = count;
    const mean = sure === null ? null : sure / Math.max(seconds, 1e-9);
    line.insertCell().append(sureDetails(certainty(!product, mean), mean === null ? "" : `${percent(mean)} on average`));
  }
  const scroll = make("div", "scroll");
  scroll.append(table);
  return scroll;
}

function sureDetails(word, number) {
  if (!word) return make("span", "soft", "–");
  const details = make("details", "sure");
  details.append(make("summary", word, word), make("span", "", number));
  return details;
}

// The cards of the parts. One that has not changed is kept, with what its reader has opened and written in it.

function keptCard(state, part) {
  const { name, named_from: from } = state.result, text = JSON.stringify([part, name, from]);
  const kept = state.made.get(part.start);
  return kept?.text === text ? kept : { text, card: partCard(state, part) };
}

function partList(state) {
  const list = make("ol", "parts");
  list.append(...[...state.made.values()].map(({ card }) => card));
  return list;
}

function partCard(state, part) {
  const { product } = part;
  const card = make("li", product ? "part" : "part none"), head = make("header");
  paint(state, card, product);
  const when = makeButton("when", range(part), () => goTo(state, part));
  when.title = "show it in the film";
  when.dataset.key = `part ${part.start}`;
  const score = product ? `, score ${product.score.toFixed(3)}` : "";
  const numbers = part.confidence === null ? "" : `probability ${percent(part.confidence)}${score}`;
  head.append(when, make("h3", "", called(product)), sureDetails(certainty(!product, part.confidence), numbers));
  const shown = make("div", "shown"), frames = make("div", "strip");
  if (product) {
    const figure = make("figure");
    figure.append(productPicture(state, product), make("figcaption", "soft", product.id, { title: product.id }));
    shown.append(figure);
  }
  showFrames(state, part, frames);
  shown.append(frames, ...runnersUp(state, part, card));
  card.append(head, ...(product ? [] : [make("p", "soft nearest", nearest(state, part))]), shown);
  if (part.speech?.length) card.append(speech(part));
  if (state.result.name) addJudgment(state, part, card);
  return card;
}

function speech(part) {
  const said = make("blockquote", "soft");
  for (const { start, text } of part.speech) {
    const sentence = make("span", "", text);
    sentence.title = clock(start);
    said.append(sentence);
  }
  return said;
}

function nearest(state, part) {
  const [first] = part.products, from = state.result.named_from, found = part.similarity;
  if (!first) return "";
  if (from === null || from === undefined || found === null || found === undefined) return `Nearest: ${called(first)}`;
  const numbers = found < from ? `${found.toFixed(2)}; named from ${from.toFixed(2)}` : `${found.toFixed(2)}; too uncertain`;
  return `Nearest: ${called(first)} (${numbers})`;
}

function runnersUp(state, part, card) {
  const others = part.products.filter((one) => productKey(one) !== productKey(part.product));
  if (!others.length) return [];
  const strip = make("div", "strip runners");
  for (const product of others) {
    const one = makeButton("", "", () => setLabel(state, part, card, product.id));
    one.disabled = !state.result.name;
    one.dataset.product = product.id;
    one.dataset.key = `runner ${part.start} ${product.id}`;
    const numbers = [product.confidence === null ? "" : percent(product.confidence), `score ${product.score.toFixed(3)}`];
    one.title = `${product.id}: ${numbers.filter(Boolean).join(", ")}${state.result.name ? "; choose it if it is shown" : ""}`;
    one.append(productPicture(state, product), make("span", "", called(product)));
    strip.append(one);
  }
  const box = make("div", "others");
  box.append(make("h4", "", part.product ? "Similar products" : "The most similar products"), strip);
  return [box];
}

// The frames of a part: those of the result, or taken from the film when they come near the window.

function showFrames(state, part, strip) {
  const named = (time) => ({ alt: `frame at ${clock(time)}` });
  const frame = (time, image) => {
    const figure = make("figure");
    figure.append(image, make("figcaption", "", clock(time)));
    return figure;
  };
  if (part.frames) {
    strip.append(...part.frames.map(({ time, image }) => frame(time, pictureBox(state, image, named(time)))));
  } else if (state.options.film) {
    const length = part.end - part.start, num = Math.min(NUM_FRAMES, Math.max(1, Math.floor(length)));
    for (let place = 0; place < num; place += 1) {
      const time = part.start + (place + 0.5) * length / num;
      const image = make("img", "", "", named(time));
      captureWhenNear(state, image, time);
      strip.append(frame(time, image));
    }
  }
}

function captureWhenNear(state, image, time) {
  const { film } = state;
  new IntersectionObserver(async ([{ isIntersecting }], observer) => {
    if (!isIntersecting) return;
    observer.disconnect();
    state.capturing = (state.capturing ?? Promise.resolve()).then(async () => {
      if (state.film !== film || !image.isConnected) return;
      if (!state.captured.has(time)) state.captured.set(time, await capture(state, time));
      const taken = state.captured.get(time);
      if (taken) image.src = taken; else image.replaceWith(noPicture());
    });
  }, { rootMargin: "300px" }).observe(image);
}

async function capture(state, time) {
  try {
    if (state.source?.src !== state.film) {
      state.source = make("video", "", "", { muted: true, preload: "auto", src: state.film });
      await happens(state.source, "loadeddata");
    }
    state.source.currentTime = time;
    await happens(state.source, "seeked");
    const canvas = make("canvas"), { videoWidth, videoHeight } = state.source;
    Object.assign(canvas, { width: Math.round(240 * videoWidth / videoHeight), height: 240 });
    canvas.getContext("2d").drawImage(state.source, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.8);
  } catch {
    return null;
  }
}

function happens(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", reject, { once: true });
  });
}
