"use strict";
// The page of `pconv try`. It keeps the picture's file as it is and sends it each time; what is painted is a list of
// strokes, which a canvas of the shown picture's size shows and of which a mask is made: black is the hole.
(function () {
  const body = document.body, root = document.documentElement;
  const part = id => document.getElementById(id);
  const picture = part("picture"), canvas = part("paint"), pen = canvas.getContext("2d");
  const HOLE = getComputedStyle(root).getPropertyValue("--hole").trim();
  let file = null, full = null, strokes = [], current = null;

  // What is shown

  function show(state) {
    body.dataset.state = state;
    fit();
  }

  function tell(note) { part("note").textContent = note; }

  function complain(reason) {
    part("problem").textContent = reason;
    part("problem").hidden = !reason;
  }

  function update() {
    const busy = body.classList.contains("busy"), painted = strokes.some(stroke => stroke.tool === "paint");
    part("fill").disabled = busy || !painted;
    part("undo").disabled = part("clear").disabled = busy || !strokes.length;
    document.querySelectorAll(".another").forEach(button => { button.disabled = busy; });
  }

  function setBusy(busy) {
    body.classList.toggle("busy", busy);
    body.setAttribute("aria-busy", busy);
    update();
  }

  // As large as the window has room for, never larger than the picture is.
  function fit() {
    if (!full) return;
    const room = document.querySelector("header").clientWidth, high = Math.max(240, innerHeight - 230);
    const width = Math.min(room, canvas.width, high * canvas.width / canvas.height);
    for (const box of [part("stage"), part("compare")]) {
      box.style.width = width + "px";
      box.style.height = width * canvas.height / canvas.width + "px";
    }
  }

  function size(width, height) { return width.toLocaleString("en") + " × " + height.toLocaleString("en"); }

  // Asking the server

  async function ask(path, files) {
    const form = new FormData();
    for (const [name, blob, called] of files) form.append(name, blob, called);
    let answer;
    try {
      answer = await fetch(path, {method: "POST", body: form, headers: {[body.dataset.mark]: "1"}});
    } catch {
      throw new Error("No answer: is the program that serves this page still running?");
    }
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || "The server failed (" + answer.status + "): its terminal says why.");
  }

  async function working(note, work) {
    complain("");
    tell(note);
    setBusy(true);
    try {
      await work();
    } catch (error) {
      complain(error.message);
      tell("");
    }
    setBusy(false);
  }

  // A URL for bytes; those of a kind that are no longer shown are let go.
  const shown = new Map();
  function urlOf(kind, blob) {
    if (shown.has(kind)) URL.revokeObjectURL(shown.get(kind));
    shown.set(kind, URL.createObjectURL(blob));
    return shown.get(kind);
  }

  async function view(kind, images, blob, called) {
    const answer = await ask("view", [["image", blob, called]]);
    const url = urlOf(kind, await answer.blob());
    for (const image of images) image.src = url;
    await images[0].decode();
    return [Number(answer.headers.get("X-Width")), Number(answer.headers.get("X-Height"))];
  }

  // A picture

  function open(chosen) {
    if (!chosen || body.classList.contains("busy")) return;
    if (chosen.size > Number(body.dataset.maxBytes)) {
      const limit = Number(body.dataset.maxBytes).toLocaleString("en");
      complain(`TooLarge: expected a file of ${limit} bytes or fewer. Received ${chosen.size.toLocaleString("en")}.`);
      return;
    }
    working(`Reading ${chosen.name} …`, async () => {
      full = await view("before", [picture, part("before")], chosen, chosen.name);
      file = chosen;
      strokes = [];
      canvas.width = picture.naturalWidth;
      canvas.height = picture.naturalHeight;
      part("size").max = Math.max(12, Math.round(Math.min(canvas.width, canvas.height) / 3));
      part("size").value = Math.max(4, Math.round(Math.min(canvas.width, canvas.height) / 14));
      draw();
      show("painting");
      const scale = canvas.width < full[0] ? `, painted at ${size(canvas.width, canvas.height)}` : "";
      tell(`${file.name}: ${size(...full)} pixels${scale}. Paint over what is to be filled.`);
    });
  }

  part("file").addEventListener("change", event => {
    open(event.target.files[0]);
    event.target.value = "";
  });
  document.querySelectorAll(".another").forEach(button => button.addEventListener("click", () => part("file").click()));
  addEventListener("dragover", event => {
    event.preventDefault();
    body.classList.add("over");
  });
  addEventListener("dragleave", event => { if (!event.relatedTarget) body.classList.remove("over"); });
  addEventListener("drop", event => {
    event.preventDefault();
    body.classList.remove("over");
    open(event.dataTransfer.files[0]);
  });
  addEventListener("paste", event => open(event.clipboardData.files[0]));

  // Painting

  function trace(pen, stroke, color) {
    pen.globalCompositeOperation = stroke.tool === "erase" ? "destination-out" : "source-over";
    pen.strokeStyle = color;
    pen.lineWidth = stroke.width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...stroke.points[0]);
    for (const point of stroke.points) pen.lineTo(...point);
    pen.stroke();
  }

  function draw() {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (const stroke of strokes) trace(pen, stroke, HOLE);
    update();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  function moveRing(event) {
    const box = canvas.getBoundingClientRect(), ring = part("ring"), wide = part("size").value * box.width / canvas.width;
    ring.hidden = body.classList.contains("busy") || event.pointerType === "touch";
    Object.assign(ring.style, {width: wide + "px", height: wide + "px"});
    Object.assign(ring.style, {left: event.clientX - box.left + "px", top: event.clientY - box.top + "px"});
  }

  canvas.addEventListener("pointerdown", event => {
    if (event.button || body.classList.contains("busy")) return;
    canvas.setPointerCapture(event.pointerId);
    const tool = document.querySelector("[name=tool]:checked").value;
    current = {tool, width: Number(part("size").value), points: [place(event)]};
    strokes.push(current);
    draw();
  });
  canvas.addEventListener("pointermove", event => {
    moveRing(event);
    if (!current) return;
    const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    current.points.push(...(events.length ? events : [event]).map(place));
    draw();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { current = null; });
  canvas.addEventListener("pointerleave", () => { part("ring").hidden = true; });

  part("undo").addEventListener("click", () => {
    strokes.pop();
    draw();
  });
  part("clear").addEventListener("click", () => {
    strokes = [];
    draw();
  });
  addEventListener("keydown", event => {
    if (body.dataset.state !== "painting" || body.classList.contains("busy")) return;
    const step = {"[": 1 / 1.25, "]": 1.25}[event.key];
    if (step) part("size").value = Math.round(part("size").value * step);
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) part("undo").click();
  });

  // Filling

  function makeMask() {
    const mask = new OffscreenCanvas(canvas.width, canvas.height), ink = mask.getContext("2d", {alpha: false});
    const painted = pen.getImageData(0, 0, canvas.width, canvas.height), pixels = painted.data;
    for (let i = 0; i < pixels.length; i += 4) {
      pixels[i] = pixels[i + 1] = pixels[i + 2] = pixels[i + 3] < 128 ? 255 : 0;
      pixels[i + 3] = 255;
    }
    ink.putImageData(painted, 0, 0);
    return mask.convertToBlob({type: "image/png"});
  }

  part("fill").addEventListener("click", () => working("Filling …", async () => {
    const stem = file.name.replace(/\.[^.]*$/, "") || "picture", mask = await makeMask(), begin = performance.now();
    const answer = await ask("fill", [["image", file, file.name], ["mask", mask, `${stem}_mask.png`]]);
    const output = await answer.blob(), seconds = (performance.now() - begin) / 1000;
    await view("after", [part("after")], output, `${stem}.png`);
    for (const [id, blob, called] of [["save", output, `${stem}.png`], ["save-mask", mask, `${stem}_mask.png`]]) {
      part(id).href = urlOf(id, blob);
      part(id).download = called;
    }
    show("filled");
    const ratio = (100 * answer.headers.get("X-Hole-Ratio")).toFixed(1);
    tell(`${stem}.png: ${size(...full)} pixels, ${ratio} % filled in ${seconds.toFixed(1)} s.`);
  }));
  part("back").addEventListener("click", () => {
    show("painting");
    tell("");
  });
  part("slider").addEventListener("input", event => {
    part("compare").style.setProperty("--at", event.target.value + "%");
  });
  addEventListener("resize", fit);
})();
