"use strict";
// Draws the chart. The data: one deflated block of columns of 32-bit numbers, a number for each run of a task, sorted by
// slot and then by time; the rest (names, the slots, the columns' names) is JSON.
(async () => {
  const $ = (id) => document.getElementById(id);
  const meta = JSON.parse($("meta").textContent);
  const gantt = $("gantt"), coresCanvas = $("cores"), tip = $("tip"), where = $("where");
  if (!("DecompressionStream" in window)) {
    where.textContent = "This browser is too old for the chart (it has no DecompressionStream); the words and tables are all there.";
    return;
  }
  const packed = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const block = await new Response(stream).arrayBuffer();
  const N = meta.runs, col = {};
  meta.columns.forEach((name, k) => { col[name] = new Uint32Array(block, 4 * N * k, N); });
  const tasks = new TextDecoder().decode(new Uint8Array(block, 4 * N * meta.columns.length)).split("\n");
  const { tick, seconds: SPAN, phases: PHASES, states: STATES, rows: ROWS, nodes: NODES, critical: CRITICAL } = meta;
  const FIRST_LOST = meta.lost;

  // Of each run: when it began and ended; each slot's runs lie between two places.
  const begin = new Float64Array(N), end = new Float64Array(N), edges = new Uint32Array(ROWS.length + 1);
  for (let i = 0; i < N; i++) {
    begin[i] = col.begun[i] * tick;
    let t = col.begun[i];
    for (const p of PHASES) t += col[p][i];
    end[i] = t * tick;
    edges[col.row[i] + 1] = i + 1;
  }
  for (let r = 0; r < ROWS.length; r++) if (!edges[r + 1]) edges[r + 1] = edges[r];

  // ------------------------------------------------------------------------------------------------- how it looks
  const GUTTER = 148, AXIS = 24, CORES = 120, PAD = 10;
  const ROW = Math.max(2, Math.min(24, Math.floor(460 / Math.max(1, ROWS.length))));
  const PLOT = Math.max(24, Math.min(ROWS.length * ROW, 460));
  let view = { from: 0, to: SPAN }, top = 0, chosen = -1, showPath = true, pending = false, colours = {};
  const MOST_TOP = Math.max(0, ROWS.length * ROW - PLOT);

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["paper", "panel", "line", "ink", "soft", "accent", "queued", "lost", "idle", ...PHASES]) {
      const text = style.getPropertyValue("--" + name).trim();
      colours[name] = { text, rgb: [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16)) };
    }
  }

  const said = (s) => {
    if (s < 0.0005) return "0 s";
    if (s < 0.0995) return `${+(1000 * s).toPrecision(2)} ms`;
    if (s < 9.95) return `${+s.toPrecision(2)} s`;
    if (s < 99.5) return `${Math.round(s)} s`;
    const whole = Math.round(s), m = Math.floor(whole / 60);
    if (m < 60) return whole % 60 ? `${m} min ${whole % 60} s` : `${m} min`;
    const minutes = Math.round(s / 60);
    return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
  };
  const axisText = (t, step) => {
    if (step >= 60) {
      const m = Math.round(t / 60);
      return m < 60 ? `${m} min` : `${Math.floor(m / 60)}:${String(m % 60).padStart(2, "0")} h`;
    }
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    if (t < 60 || step < 1) return `${t.toFixed(digits)} s`;
    return `${Math.floor(Math.round(t) / 60)}:${String(Math.round(t) % 60).padStart(2, "0")}`;
  };
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
  function ticks(width) {
    const least = (view.to - view.from) / Math.max(2, width / 90);
    let step = STEPS.find((s) => s >= least);
    if (least < 1) {
      const power = 10 ** Math.floor(Math.log10(least));
      step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= least);
    }
    step = step || Math.ceil(least / 86400) * 86400;
    const found = [];
    for (let k = Math.ceil(view.from / step); k * step <= view.to; k++) found.push(k * step);
    return { step, found };
  }

  function size(canvas, height) {
    const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
    canvas.style.height = height + "px";
    const w = Math.round(width * scale), h = Math.round(height * scale);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const g = canvas.getContext("2d");
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.fillStyle = colours.paper.text;
    g.fillRect(0, 0, w, h);
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.font = "12px system-ui, sans-serif";
    g.textBaseline = "middle";
    return { g, scale, width: width - GUTTER - PAD };
  }

  // First run of a slot that ends after a moment.
  function after(row, moment) {
    let low = edges[row], high = edges[row + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (end[middle] > moment) high = middle; else low = middle + 1;
    }
    return low;
  }

  // Each pixel of a slot has the mean of the colours of what lies in it: no run is lost, however many there are.
  function paintSlots(scale, W, H) {
    const image = new ImageData(W, H), pixels = new Uint32Array(image.data.buffer);
    const pack = (r, g, b) => (255 << 24) | (b << 16) | (g << 8) | r;
    const [pr, pg, pb] = colours.paper.rgb, [ir, ig, ib] = colours.idle.rgb;
    pixels.fill(pack(pr, pg, pb));
    const red = new Float32Array(W), green = new Float32Array(W), blue = new Float32Array(W), cover = new Float32Array(W);
    const perSecond = W / (view.to - view.from), line = new Uint32Array(W);
    const add = (from, to, rgb) => {
      let x = Math.max(0, from), stop = Math.min(W, to);
      while (x < stop) {
        const cell = Math.floor(x), part = Math.min(cell + 1, stop) - x;
        cover[cell] += part; red[cell] += part * rgb[0]; green[cell] += part * rgb[1]; blue[cell] += part * rgb[2];
        x = cell + 1;
      }
    };
    const firstRow = Math.floor(top / ROW), lastRow = Math.min(ROWS.length, Math.ceil((top + PLOT) / ROW));
    for (let row = firstRow; row < lastRow; row++) {
      red.fill(0); green.fill(0); blue.fill(0); cover.fill(0);
      for (let i = after(row, view.from); i < edges[row + 1]; i++) {
        let t = begin[i] - col.gap[i] * tick;
        if (t >= view.to) break;
        let x = (t - view.from) * perSecond;
        const start = (begin[i] - view.from) * perSecond, stop = (end[i] - view.from) * perSecond;
        add(x, start, colours.queued.rgb);
        if (col.state[i] >= FIRST_LOST) { add(start, Math.max(stop, start + 1), colours.lost.rgb); continue; }
        x = start;
        for (const p of PHASES) {
          const next = x + col[p][i] * tick * perSecond;
          if (next > x) add(x, next, colours[p].rgb);
          x = next;
        }
      }
      for (let x = 0; x < W; x++) {
        const c = cover[x];
        if (c <= 0) { line[x] = pack(ir, ig, ib); continue; }
        const seen = Math.min(1, Math.max(c, 0.3)), rest = 1 - seen;  // a lonely short run is to be seen too
        line[x] = pack(red[x] / c * seen + ir * rest, green[x] / c * seen + ig * rest, blue[x] / c * seen + ib * rest);
      }
      const y0 = Math.max(0, Math.round((row * ROW - top) * scale));
      const y1 = Math.min(H, Math.round(((row + 1) * ROW - top) * scale) - (ROW > 3 ? Math.round(scale) : 0));
      for (let y = y0; y < y1; y++) pixels.set(line, y * W);
    }
    return image;
  }

  function drawGantt() {
    const { g, scale, width } = size(gantt, PLOT + AXIS);
    if (width < 20) return;
    const W = Math.round(width * scale), H = Math.round(PLOT * scale);
    g.putImageData(paintSlots(scale, W, H), Math.round(GUTTER * scale), 0);
    const toX = (t) => GUTTER + (t - view.from) / (view.to - view.from) * width;
    const firstRow = Math.floor(top / ROW), lastRow = Math.min(ROWS.length, Math.ceil((top + PLOT) / ROW));

    g.save();
    g.beginPath(); g.rect(GUTTER, 0, width, PLOT); g.clip();
    for (let row = firstRow; row < lastRow; row++) {
      const y = row * ROW - top, height = ROW > 3 ? ROW - 1 : ROW;
      let marked = -9;
      for (let i = after(row, view.from); i < edges[row + 1] && begin[i] < view.to; i++) {
        const x0 = toX(begin[i]), x1 = toX(end[i]);
        if (x1 - x0 >= 6) { g.fillStyle = colours.paper.text; g.fillRect(x0 - 0.5, y, 1, height); }
        if (showPath && row === CRITICAL && ROW > 3) {
          g.fillStyle = colours.accent.text;
          g.fillRect(x0, y, Math.max(1, x1 - x0 - (x1 - x0 >= 6 ? 1 : 0)), Math.min(3, ROW / 4));
        }
        if (x0 - marked < 3) continue;
        if (col.again[i]) {
          const s = Math.min(9, Math.max(4, height / 2));
          g.fillStyle = colours.ink.text; g.strokeStyle = colours.paper.text;
          g.beginPath(); g.moveTo(x0, y + height); g.lineTo(x0 + s, y + height); g.lineTo(x0, y + height - s); g.closePath();
          g.fill(); g.stroke(); marked = x0;
        }
        if (col.failed[i]) {
          g.fillStyle = colours.lost.text;
          g.fillRect(x0, y + height - Math.min(4, height), Math.max(3, x1 - x0 - 1), Math.min(4, height)); marked = x0;
        }
        if (STATES[col.state[i]] === "running" && x1 - x0 >= 4) {
          g.fillStyle = colours.ink.text;
          for (let k = 0; k < 3; k++) g.fillRect(x1 - 3 - 5 * k, y + height / 2 - 1, 2, 2);
        }
      }
      if (showPath && row === CRITICAL && ROW <= 3) {
        g.fillStyle = colours.accent.text;
        g.fillRect(GUTTER, y - 1, 6, ROW + 2);
      }
    }
    if (chosen >= 0) {
      g.strokeStyle = colours.ink.text; g.lineWidth = 2;
      const y = col.row[chosen] * ROW - top, x0 = toX(begin[chosen]), x1 = Math.max(toX(end[chosen]), x0 + 2);
      g.strokeRect(x0, y, x1 - x0, Math.max(2, ROW - 1));
      const from = toX(begin[chosen] - col.age[chosen] * tick);
      g.setLineDash([3, 3]); g.lineWidth = 1;
      g.beginPath(); g.moveTo(from, y + ROW / 2); g.lineTo(x0, y + ROW / 2); g.stroke(); g.setLineDash([]);
    }
    g.restore();

    // Names of nodes, where there is room.
    let free = -99;
    for (let row = firstRow; row < lastRow; row++) {
      const [node, slot] = ROWS[row], y = row * ROW - top;
      const critical = showPath && row === CRITICAL;
      if (slot === 0 || row === firstRow) {
        g.strokeStyle = colours.line.text; g.lineWidth = 1;
        if (row > firstRow && ROW > 3) { g.beginPath(); g.moveTo(0, y - 0.5); g.lineTo(GUTTER + width, y - 0.5); g.stroke(); }
      }
      const named = slot === 0 || row === firstRow || critical;
      const middle = Math.max(8, y + ROW / 2);
      if (!(named || ROW >= 13) || middle - free < 13 || middle > PLOT - 4) continue;
      free = middle;
      g.textAlign = "left"; g.fillStyle = critical ? colours.accent.text : colours.ink.text;
      if (named) g.fillText(shortened(g, NODES[node][0], GUTTER - 34), 8, middle);
      g.textAlign = "right"; g.fillStyle = critical ? colours.accent.text : colours.soft.text;
      g.fillText(String(slot + 1), GUTTER - 8, middle);
    }

    g.fillStyle = colours.soft.text; g.strokeStyle = colours.line.text; g.textAlign = "center";
    const { step, found } = ticks(width);
    for (const t of found) {
      const x = toX(t);
      g.beginPath(); g.moveTo(x + 0.5, PLOT); g.lineTo(x + 0.5, PLOT + 5); g.stroke();
      g.fillText(axisText(t, step), Math.min(x, GUTTER + width - 14), PLOT + 15);
    }
    return found;
  }

  function shortened(g, text, width) {
    if (g.measureText(text).width <= width) return text;
    let kept = text;
    while (kept && g.measureText("…" + kept).width > width) kept = kept.slice(1);
    return "…" + kept;  // the end of a node's name is what tells it from others
  }

  function drawCores(found) {
    const { g, width } = size(coresCanvas, CORES);
    if (width < 20) return;
    const W = Math.round(width), per = W / (view.to - view.from);
    const steps = new Float64Array(W + 2), parts = new Float64Array(W + 2);
    const add = (from, to, level) => {
      const low = Math.min(W, Math.max(0, (from - view.from) * per)), high = Math.min(W, Math.max(0, (to - view.from) * per));
      if (high <= low || !level) return;
      const a = Math.floor(low), b = Math.floor(high);
      if (a === b) { parts[a] += level * (high - low); return; }
      parts[a] += level * (a + 1 - low); parts[b] += level * (high - b);
      steps[a + 1] += level; steps[b] -= level;
    };
    const before = PHASES.slice(0, PHASES.indexOf("compute"));
    for (let i = 0; i < N; i++) {
      if (end[i] <= view.from || begin[i] >= view.to) continue;
      let t = col.begun[i];
      for (const p of before) t += col[p][i];
      add(t * tick, (t + col.compute[i]) * tick, col.busy[i] / 1000);
    }
    const busy = new Float64Array(W);
    for (let x = 0, level = 0; x < W; x++) { level += steps[x]; busy[x] = Math.max(0, level + parts[x]); }
    steps.fill(0); parts.fill(0);
    for (const [, cores, since] of NODES) add(since, SPAN, cores);
    const there = new Float64Array(W);
    for (let x = 0, level = 0; x < W; x++) { level += steps[x]; there[x] = Math.max(0, level + parts[x]); }
    const most = Math.max(1, meta.cores), base = CORES - 10, high = base - 22;
    const toY = (value) => base - Math.min(1.04, value / most) * high;

    g.fillStyle = colours.soft.text; g.strokeStyle = colours.line.text; g.lineWidth = 1;
    g.textAlign = "left"; g.fillText("Cores in calls", 8, 14);
    g.textAlign = "right";
    for (const value of most > 1 ? [0, most / 2, most] : [0, most]) {
      const y = Math.round(toY(value)) + 0.5;
      g.fillText(String(+value.toFixed(1)), GUTTER - 8, Math.min(y, base - 3));
      g.beginPath(); g.moveTo(GUTTER, y); g.lineTo(GUTTER + width, y); g.stroke();
    }
    for (const t of found || []) {
      const x = GUTTER + (t - view.from) / (view.to - view.from) * width;
      g.beginPath(); g.moveTo(x + 0.5, base - high); g.lineTo(x + 0.5, base); g.stroke();
    }
    g.beginPath(); g.moveTo(GUTTER, base);
    for (let x = 0; x < W; x++) { g.lineTo(GUTTER + x, toY(busy[x])); g.lineTo(GUTTER + x + 1, toY(busy[x])); }
    g.lineTo(GUTTER + W, base); g.closePath();
    g.fillStyle = colours.compute.text; g.globalAlpha = 0.75; g.fill(); g.globalAlpha = 1;
    g.strokeStyle = colours.ink.text; g.lineWidth = 1.25; g.beginPath();
    for (let x = 0; x < W; x++) { const y = toY(there[x]); if (x) g.lineTo(GUTTER + x, y); else g.moveTo(GUTTER, y); g.lineTo(GUTTER + x + 1, y); }
    g.stroke();
  }

  function range() {
    let text = view.from > 0 || view.to < SPAN ? `${said(view.from)} to ${said(view.to)} of ${said(SPAN)}` : `All ${said(SPAN)}`;
    if (MOST_TOP > 0) text += `; slots ${Math.floor(top / ROW) + 1} to ${Math.min(ROWS.length, Math.ceil((top + PLOT) / ROW))} of ${ROWS.length}`;
    return text;
  }

  function draw() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      const began = performance.now();
      readColours();
      drawCores(drawGantt());
      if (chosen < 0) where.textContent = range();
      document.documentElement.dataset.drawn = (performance.now() - began).toFixed(1);
    });
  }

  // --------------------------------------------------------------------------------------------- what one does with it
  function show(from, to) {
    const least = Math.max(SPAN / 1e5, 10 * tick), length = Math.min(SPAN, Math.max(least, to - from));
    const start = Math.min(Math.max(0, (from + to - length) / 2), SPAN - length);
    view = { from: start, to: start + length };
    draw();
  }
  const zoom = (factor, at = (view.from + view.to) / 2) =>
    show(at - (at - view.from) / factor, at + (view.to - at) / factor);
  const pan = (part) => { const d = part * (view.to - view.from); show(view.from + d, view.to + d); };
  const scroll = (pixels) => { top = Math.min(MOST_TOP, Math.max(0, top + pixels)); draw(); };
  const all = () => { top = 0; choose(-1); show(0, SPAN); };

  function words(i) {
    const [node, slot] = ROWS[col.row[i]], lines = [
      `${tasks[i]} on ${NODES[node][0]}, slot ${slot + 1}`,
      `${col.calls[i]} calls` + (col.failed[i] ? `, ${col.failed[i]} failed` : "") + `, ${STATES[col.state[i]]}` +
        (col.again[i] ? `, begun ${col.again[i] + 1} times` : "") + (col.row[i] === CRITICAL ? ", on the critical path" : ""),
      `from ${said(begin[i])} on, ${said(end[i] - begin[i])}; had been there for ${said(col.age[i] * tick)}`,
    ];
    if (col.state[i] < FIRST_LOST) lines.push(PHASES.filter((p) => col[p][i]).map((p) => `${p} ${said(col[p][i] * tick)}`).join(", "));
    return lines;
  }

  function choose(i, event) {
    chosen = i;
    if (i < 0) { tip.hidden = true; where.textContent = range(); draw(); return; }
    const lines = words(i), box = gantt.getBoundingClientRect();
    tip.textContent = lines.join("\n");
    where.textContent = lines.join("; ");
    tip.hidden = false;
    const width = box.width - GUTTER - PAD;
    const x = event ? event.clientX - box.left : GUTTER + (Math.max(begin[i], view.from) - view.from) / (view.to - view.from) * width;
    const y = event ? event.clientY - box.top : (col.row[i] + 1) * ROW - top;
    tip.style.left = Math.max(4, Math.min(x + 14, box.width - tip.offsetWidth - 6)) + "px";
    tip.style.top = (y + 16 + tip.offsetHeight > PLOT + AXIS + CORES ? Math.max(2, y - tip.offsetHeight - 12) : y + 16) + "px";
    draw();
  }

  // Bring a run that the keyboard has chosen into view.
  function reveal(i) {
    const length = Math.max(view.to - view.from, end[i] - begin[i]);
    if (begin[i] < view.from || end[i] > view.to) show(begin[i] - length * 0.1, begin[i] + length * 0.9);
    const y = col.row[i] * ROW;
    if (y < top || y + ROW > top + PLOT) top = Math.min(MOST_TOP, Math.max(0, y - PLOT / 2));
    choose(i);
  }
  function step(by) {
    if (!N) return;
    if (chosen < 0) reveal(CRITICAL >= 0 ? edges[CRITICAL] : 0);
    else reveal(Math.min(N - 1, Math.max(0, chosen + by)));
  }
  function stepSlot(by) {
    if (chosen < 0) { if (MOST_TOP) scroll(by * 40); else step(0); return; }
    const row = Math.min(ROWS.length - 1, Math.max(0, col.row[chosen] + by));
    reveal(Math.min(after(row, begin[chosen]), edges[row + 1] - 1));
  }

  function hit(event) {
    const box = gantt.getBoundingClientRect(), x = event.clientX - box.left - GUTTER, y = event.clientY - box.top;
    const width = box.width - GUTTER - PAD;
    if (x < 0 || x > width || y < 0 || y >= PLOT) return -1;
    const row = Math.floor((y + top) / ROW), t = view.from + x / width * (view.to - view.from);
    if (row >= ROWS.length) return -1;
    const slack = 2 * (view.to - view.from) / width, i = after(row, t - slack);
    return i < edges[row + 1] && begin[i] - col.gap[i] * tick <= t + slack ? i : -1;
  }
  const timeAt = (event) => {
    const box = gantt.getBoundingClientRect(), width = box.width - GUTTER - PAD;
    return view.from + Math.min(1, Math.max(0, (event.clientX - box.left - GUTTER) / width)) * (view.to - view.from);
  };

  let held = null;
  gantt.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, view: { ...view }, top };
    gantt.setPointerCapture(event.pointerId); gantt.classList.add("held");
  });
  gantt.addEventListener("pointerup", () => { held = null; gantt.classList.remove("held"); });
  gantt.addEventListener("pointercancel", () => { held = null; gantt.classList.remove("held"); });
  gantt.addEventListener("pointermove", (event) => {
    if (held) {
      const width = gantt.clientWidth - GUTTER - PAD, d = (held.x - event.clientX) / width * (held.view.to - held.view.from);
      top = Math.min(MOST_TOP, Math.max(0, held.top + held.y - event.clientY));
      tip.hidden = true;
      show(held.view.from + d, held.view.to + d);
      return;
    }
    const i = hit(event);
    if (i >= 0 || chosen >= 0) choose(i, event);
  });
  gantt.addEventListener("pointerleave", () => { if (!held) choose(-1); });
  gantt.addEventListener("dblclick", (event) => zoom(event.shiftKey ? 1 / 3 : 3, timeAt(event)));
  gantt.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY / 250), timeAt(event));
    else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((event.deltaX || event.deltaY) / 900);
    else return;
    event.preventDefault();
  }, { passive: false });
  const path = () => { showPath = !showPath; $("path").setAttribute("aria-pressed", showPath); draw(); };
  const KEYS = {
    "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6), "0": all, Home: all,
    ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), ArrowUp: () => stepSlot(-1), ArrowDown: () => stepSlot(1),
    n: () => step(1), p: () => step(-1), c: path, Escape: () => choose(-1),
  };
  gantt.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  $("in").onclick = () => zoom(2);
  $("out").onclick = () => zoom(1 / 2);
  $("all").onclick = all;
  $("path").onclick = path;
  new ResizeObserver(draw).observe(gantt);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
