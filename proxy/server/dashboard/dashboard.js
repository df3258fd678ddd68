// Updates the dashboard from /status/stream. Everything from outside is set as text, never as HTML.
"use strict";

const spec = JSON.parse(document.getElementById("spec").textContent);
const NONE = "–", NO_ROUTE = "(no route)", MOST_ROWS = 100, WIDTH = 180, HEIGHT = 40, STEPS = 180;
const STALE_MS = 3500, HIDDEN_MS = 30000, LONGEST_MS = 10000, TOKEN = "weirpool-token";
const byId = id => document.getElementById(id);

// --- How values are written: the same kinds as in view.py

const groups = value => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
const scaled = (value, suffix) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let at = 0;
    for (; value >= 1000 && at < units.length - 1; at++) value /= 1000;
    return `${value.toFixed(at === 0 || value >= 100 ? 0 : 1)} ${units[at]}${suffix}`;
};
const two = number => String(number).padStart(2, "0");
const kinds = {
    text: String,
    state: String,
    id: String,
    count: groups,
    bad: groups,
    rate: value => value.toFixed(value < 100 ? 1 : 0),
    bytes: value => scaled(value, ""),
    byterate: value => scaled(value, "/s"),
    percent: value => `${(value * 100).toFixed(1)} %`,
    share: value => `${(value * 100).toFixed(1)} %`,
    seconds: value => value < 0.001 ? `${(value * 1e6).toFixed(0)} µs`
        : value < 1 ? `${(value * 1e3).toFixed(value < 0.1 ? 1 : 0)} ms`
        : `${value.toFixed(value < 100 ? 2 : 0)} s`,
    age: value => {
        if (value < 100) return `${value.toFixed(1)} s`;
        const minutes = Math.floor(value / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
        if (!hours) return `${minutes} min ${two(Math.floor(value % 60))} s`;
        return days ? `${days} d ${two(hours % 24)} h` : `${hours} h ${two(minutes % 60)} min`;
    },
    time: value => new Date(value * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC",
    clock: value => new Date(value * 1000).toISOString().slice(11, 19),
};
const text = (kind, value) => value === null || value === undefined ? NONE : kinds[kind](value);
const at = (value, path) => path.split(".").reduce((item, key) => item === null || item === undefined ? item : item[key], value);
const set = (element, value) => { if (element.textContent !== value) element.textContent = value; };

// --- Lines

function line(series, top) {
    let path = "", pen = "M";
    const first = STEPS - series.length;
    series.forEach((value, number) => {
        if (value === null) { pen = "M"; return; }
        const x = (first + number) * WIDTH / (STEPS - 1);
        path += `${pen}${x.toFixed(1)} ${(HEIGHT - 1 - value / top * (HEIGHT - 2)).toFixed(1)}`;
        pen = "L";
    });
    return path;
}
const highest = series => Math.max(0, ...series.filter(value => value !== null)) || 1;
const last = series => series.length ? series[series.length - 1] : null;

function showFigures(state, isNewStep) {
    for (const figure of spec.figures) {
        const value = at(state, figure.key), element = byId(`figure-${figure.id}`);
        set(element, text(figure.kind, value));
        element.parentNode.hidden = figure.optional && (value === null || value === undefined);
        if (!isNewStep) continue;
        const series = at(state.history, figure.series), top = highest(series), path = byId(`line-${figure.id}`);
        path.setAttribute("d", line(series, top));
        path.parentNode.setAttribute("aria-label", series.some(value => value !== null)
            ? `${figure.label}, last 15 minutes: now ${text(figure.kind, last(series))}, highest ${text(figure.kind, top)}`
            : `${figure.label}, last 15 minutes: none`);
    }
}

function showCharts(state) {
    for (const chart of spec.charts) {
        const element = byId(`chart-${chart.id}`), all = chart.series.map(([, path]) => at(state.history, path));
        const top = chart.kind === "percent" ? 1 : Math.max(...all.map(highest));
        set(element.querySelector(".top"), text(chart.kind, top));
        const now = all.map(series => text(chart.kind, last(series)));
        element.querySelectorAll("path").forEach((path, number) => path.setAttribute("d", line(all[number], top)));
        element.querySelectorAll("b").forEach((item, number) => set(item, now[number]));
        const names = chart.series.map(([name], number) => `${name} ${now[number]}`).join(", ");
        element.querySelector("svg").setAttribute("aria-label", `${chart.title}, last 15 minutes: now ${names}; highest ${text(chart.kind, top)}`);
    }
}

// --- Tables

const isSeen = row => row.upstream !== null || Object.values(row.outcomes).some(count => count > 0);

function rowsOf(table, state) {
    const [head, tail] = table.rows.split(".*.");
    if (tail) return Object.entries(at(state, head)).flatMap(([name, item]) => item[tail].map(row => ({name, ...row})));
    const rows = at(state, table.rows);
    if (table.id === "routes") return rows.filter(isSeen).map(row => ({...row, route: row.route || NO_ROUTE}));
    if (["limits", "budgets"].includes(table.id)) return rows.map(row => ({...row, share: row.used / (row.of || 1)}));
    if (table.id === "workers") return rows.map(row => ({...row, health: row.problem || (row.draining ? "draining" : "up")}));
    return rows;
}

class Table {
    constructor(table) {
        this.spec = table;
        this.sort = table.sort;
        this.descending = table.descending;
        this.rows = [];
        this.shown = new Map();
        this.body = byId(`${table.id}-table`).tBodies[0];
        this.body.replaceChildren();
        this.heads = [...byId(`${table.id}-table`).tHead.rows[0].cells];
        this.heads.forEach((head, number) => {
            const button = document.createElement("button");
            button.type = "button";
            button.textContent = head.textContent;
            button.addEventListener("click", () => this.sortBy(table.columns[number]));
            head.replaceChildren(button);
        });
        this.filter = byId(`${table.id}-filter`);
        if (this.filter) {
            this.filter.disabled = false;
            this.filter.addEventListener("input", () => this.draw());
        }
    }

    sortBy(column) {
        const isText = ["text", "state"].includes(column.kind);
        this.descending = this.sort === column.key ? !this.descending : !isText;
        this.sort = column.key;
        this.draw();
    }

    show(state) {
        this.rows = rowsOf(this.spec, state);
        this.draw();
    }

    hideUnused() {
        this.spec.columns.forEach(({optional, key}, number) => {
            if (!optional) return;
            const hidden = this.rows.every(row => row[key] === null || row[key] === undefined);
            this.heads[number].hidden = hidden;
            for (const row of this.body.rows) row.cells[number].hidden = hidden;
        });
    }

    draw() {
        const {columns, key} = this.spec, wanted = this.filter ? this.filter.value.toLowerCase() : "";
        let rows = this.rows.map(row => ({row, cells: columns.map(item => text(item.kind, at(row, item.key)))}));
        if (wanted) rows = rows.filter(({cells}) => cells.some(cell => cell.toLowerCase().includes(wanted)));
        const order = value => value === null || value === undefined ? [0, 0] : typeof value === "string" ? [2, value] : [1, value];
        const sign = this.descending ? -1 : 1;
        rows = rows.map(item => ({...item, order: order(at(item.row, this.sort))}));
        rows.sort(({order: one}, {order: two}) => sign * (one[0] - two[0] || (one[1] < two[1] ? -1 : one[1] > two[1] ? 1 : 0)));
        const total = rows.length;
        rows = rows.slice(0, MOST_ROWS);
        this.heads.forEach((head, number) => {
            if (columns[number].key === this.sort) head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
            else head.removeAttribute("aria-sort");
        });
        const names = new Set();
        rows.forEach(({row, cells}, number) => {
            const name = JSON.stringify(key.map(item => row[item]));
            names.add(name);
            let element = this.shown.get(name);
            if (!element) {
                element = document.createElement("tr");
                for (const column of columns) element.insertCell().className = column.kind;
                this.shown.set(name, element);
            }
            cells.forEach((cell, at) => this.fill(element.cells[at], columns[at].kind, cell, row, columns[at].key));
            if (this.body.rows[number] !== element) this.body.insertBefore(element, this.body.rows[number] || null);
        });
        for (const [name, element] of this.shown) {
            if (names.has(name)) continue;
            element.remove();
            this.shown.delete(name);
        }
        set(byId(`${this.spec.id}-count`), total > MOST_ROWS ? `${MOST_ROWS} of ${groups(total)}: filter to see others` : groups(total));
        byId(`${this.spec.id}-empty`).hidden = total > 0;
        this.hideUnused();
    }

    fill(cell, kind, shown, row, key) {
        if (cell.textContent === shown) return;
        cell.textContent = shown;
        if (kind === "text") cell.title = shown;
        if (kind === "state") cell.dataset.state = shown;
        if (kind === "bad") cell.toggleAttribute("data-some", at(row, key) > 0);
        if (kind === "share") cell.toggleAttribute("data-some", at(row, key) >= 0.9);
    }
}

// --- The state

const tables = spec.tables.map(table => new Table(table));
let steps = null, reloadedAt;

function show(state) {
    const isNewStep = steps !== state.history.end;
    steps = state.history.end;
    showFigures(state, isNewStep);
    if (isNewStep) showCharts(state);
    for (const table of tables) table.show(state);
    const {reload, store} = state;
    const reloaded = !reload ? "none since the start" : (reload.ok ? "done " : "FAILED ") + text("time", reload.at);
    const facts = {version: state.version, started: text("time", state.started_at), reload: reloaded, store: store.up ? store.at : `${store.at}: AWAY`};
    for (const [id, value] of Object.entries(facts)) fact(id, value);
    const problems = [];
    if (reload && !reload.ok) problems.push("The last reload has failed, the configuration before is in force:", ...(reload.errors || []));
    if (!store.up) problems.push("The store is away: limits are not shared.");
    for (const worker of state.workers) if (worker.problem) problems.push(`Worker ${worker.worker} ${worker.problem}.`);
    showProblems(problems);
    const since = reload && reload.ok ? reload.at : 0;
    if (reloadedAt !== since) { reloadedAt = since; showConfiguration(); }
}

const LABELS = {version: "Version", started: "Running since", store: "Store", reload: "Last reload"};
function fact(id, value) {
    let element = byId(`fact-${id}`);
    if (!element) {
        const box = document.createElement("div"), label = document.createElement("dt");
        label.textContent = LABELS[id];
        element = document.createElement("dd");
        element.id = `fact-${id}`;
        box.append(label, element);
        document.querySelector(".facts").append(box);
    }
    set(element, value);
}

function showProblems(problems) {
    const box = byId("problems"), now = problems.join("\n");
    if (box.dataset.now === now) return;
    box.dataset.now = now;
    box.replaceChildren(...problems.map(problem => {
        const line = document.createElement("p");
        line.textContent = problem;
        return line;
    }));
}

async function showConfiguration() {
    try {
        const answer = await fetch(spec.paths.status, {headers: headers(), cache: "no-store"});
        const state = answer.ok ? await answer.json() : {};
        if (state.configuration) set(byId("configuration-text"), outline(state.configuration, 0));
    } catch { reloadedAt = undefined; }
}

function outline(value, indent) {
    const pad = "  ".repeat(indent), isNested = item => item !== null && typeof item === "object" && Object.keys(item).length > 0;
    if (!isNested(value)) return pad + JSON.stringify(value);
    if (Array.isArray(value)) return value.map(item => `${pad}- ${outline(item, indent + 1).trimStart()}`).join("\n");
    return Object.entries(value).map(([key, item]) => isNested(item) ? `${pad}${key}:\n${outline(item, indent + 1)}` : `${pad}${key}: ${JSON.stringify(item)}`).join("\n");
}

// --- The stream

let stop = null, hiddenAt = 0, newestAt = 0;
const token = () => sessionStorage.getItem(TOKEN);
const headers = () => token() ? {Authorization: `Bearer ${token()}`} : {};
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

function connection(state, words) {
    const element = byId("connection");
    element.dataset.state = state;
    set(element, words);
    document.body.toggleAttribute("data-stale", state !== "live");
}

async function watch() {
    for (let wait = 1000; ; wait = Math.min(wait * 2, LONGEST_MS)) {
        if (document.hidden) await new Promise(resolve => document.addEventListener("visibilitychange", resolve, {once: true}));
        const began = newestAt;
        try {
            stop = new AbortController();
            const answer = await fetch(spec.paths.stream, {headers: headers(), cache: "no-store", signal: stop.signal});
            if (answer.status === 401) { await askForToken(); wait = 500; continue; }
            if (answer.ok) {
                byId("token").hidden = true;
                byId("data").hidden = false;
                await read(answer.body.getReader());
            } else connection("wait", answer.status === 503 ? "too many pages are open: waiting" : `answer ${answer.status}: waiting`);
        } catch (error) {
            if (error instanceof SyntaxError) throw error;
        }
        if (newestAt !== began) wait = 500;
        if (document.hidden) continue;
        if (newestAt) lost();
        else connection("wait", "connecting");
        await sleep(wait);
    }
}

async function read(reader) {
    const decoder = new TextDecoder();
    for (let rest = ""; ;) {
        const {done, value} = await reader.read();
        if (done) return;
        rest += decoder.decode(value, {stream: true});
        const blocks = rest.split("\n\n");
        rest = blocks.pop();
        const newest = blocks.filter(block => block.startsWith("event: status\n")).pop();
        if (!newest) continue;
        const state = JSON.parse(newest.slice(newest.indexOf("data: ") + 6));
        newestAt = Date.now();
        connection("live", state.draining ? "draining" : "live");
        show(state);
    }
}

function askForToken() {
    const form = byId("token"), field = byId("token-text");
    byId("data").hidden = true;
    form.hidden = false;
    connection("wait", "needs a token");
    set(byId("token-problem"), token() ? "This is not the token." : "");
    sessionStorage.removeItem(TOKEN);
    field.focus();
    return new Promise(resolve => {
        form.onsubmit = event => {
            event.preventDefault();
            const given = field.value.trim();
            field.value = "";
            if (!/^[!-~]+$/.test(given)) { set(byId("token-problem"), "This is not the token."); return; } // fetch cannot send it
            sessionStorage.setItem(TOKEN, given);
            resolve();
        };
    });
}

function lost() {
    connection("lost", `stale since ${new Date(newestAt).toTimeString().slice(0, 8)}: connecting`);
}

setInterval(() => {
    if (newestAt && Date.now() - newestAt > STALE_MS && !document.hidden) lost();
    if (document.hidden && hiddenAt && Date.now() - hiddenAt > HIDDEN_MS && stop) { stop.abort(); stop = null; }
}, 1000);
document.addEventListener("visibilitychange", () => { hiddenAt = document.hidden ? Date.now() : 0; });
document.addEventListener("keydown", event => {
    const isTyping = event.target instanceof HTMLInputElement;
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        byId("exchanges-filter").focus();
    }
});
watch();
