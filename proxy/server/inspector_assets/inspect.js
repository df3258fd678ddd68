// The inspector: shows /inspect/stream. Everything from outside is set as text, never as HTML.
"use strict";

const TOKEN = "weirpool-token", LIST_MS = 2000, MOST_ROWS = 500, MOST_MESSAGES = 50000, MOST_CHARS = 20e6, MOST_TEXT = 200000;
const byId = id => document.getElementById(id);
const set = (element, value) => { if (element.textContent !== value) element.textContent = value; };
const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
};
const token = () => sessionStorage.getItem(TOKEN);
const headers = () => token() ? {Authorization: `Bearer ${token()}`} : {};
const bytes = value => value < 1000 ? `${value} B` : value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
const seconds = value => `${value.toFixed(value < 10 ? 3 : 1)} s`;

function connection(state, words) {
    byId("connection").dataset.state = state;
    set(byId("connection"), words);
}

// --- The token

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
            form.hidden = true;
            resolve();
        };
    });
}

// --- The live streams

async function list() {
    for (;;) {
        try {
            const answer = await fetch("status", {headers: headers(), cache: "no-store"});
            if (answer.status === 401) { await askForToken(); continue; }
            if (answer.ok) showStreams((await answer.json()).exchanges);
            byId("data").hidden = false;
            if (!watching) connection(answer.ok ? "live" : "lost", answer.ok ? "ready" : `answer ${answer.status}`);
        } catch {
            if (!watching) connection("lost", "not connected");
        }
        await new Promise(resolve => setTimeout(resolve, LIST_MS));
    }
}

function showStreams(exchanges) {
    const body = byId("streams-table").tBodies[0], focused = document.activeElement && document.activeElement.dataset.exchange;
    const rows = exchanges.oldest.filter(item => item.path !== undefined).slice(0, MOST_ROWS);
    body.replaceChildren(...rows.map(item => {
        const row = make("tr"), id = `${item.worker || 0}-${item.id}`, button = make("button", "", `Watch ${id}`);
        button.type = "button";
        button.dataset.exchange = id;
        button.addEventListener("click", () => watch({exchange: id}));
        row.insertCell().append(button);
        for (const text of [item.route, item.client || "–", `${item.method} ${item.path}`, item.phase]) row.append(make("td", "", text));
        row.append(make("td", "age", seconds(item.age)), make("td", "bytes", bytes(item.bytes)));
        return row;
    }));
    if (focused) { const button = body.querySelector(`[data-exchange="${CSS.escape(focused)}"]`); if (button) button.focus(); }
    set(byId("streams-count"), String(exchanges.total));
    byId("streams-empty").hidden = rows.length > 0;
}

// --- One stream

let watching = null;  // {abort, messages, chars, ...} of the stream that is shown

function begin() {
    return {
        abort: new AbortController(), messages: [], chars: 0, isWhole: true, paused: false, next: 0, frame: 0, over: false,
        names: [], rows: new Map(), order: [], lastAt: null, lost: 0, begin: null, head: null, text: 0,
    };
}

async function watch(query) {
    if (watching) watching.abort.abort();
    const own = watching = begin();
    clear();
    connection("wait", query.exchange ? `joining ${query.exchange}` : "waiting for the next stream that matches");
    byId("watched").hidden = false;
    try {
        const answer = await fetch(`inspect/stream?${new URLSearchParams(query)}`, {headers: headers(), cache: "no-store", signal: own.abort.signal});
        if (answer.status === 401) {
            await askForToken();
            byId("data").hidden = false;
            return watch(query);
        }
        if (!answer.ok) { connection("lost", (await answer.text()).slice(0, 200)); return; }
        await read(answer.body.getReader(), own);
        if (own === watching && !own.over) connection("lost", "the stream of the inspector has ended");
    } catch (error) {
        if (own === watching && error.name !== "AbortError") connection("lost", "the connection is lost");
    }
}

async function read(reader, own) {
    const decoder = new TextDecoder();
    for (let rest = ""; ;) {
        const {done, value} = await reader.read();
        if (done) return;
        rest += decoder.decode(value, {stream: true});
        const blocks = rest.split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
            if (!block.startsWith("event: ")) continue;
            const [kind, data] = block.slice(7).split("\ndata: ");
            take(own, kind, JSON.parse(data), data.length);
        }
    }
}

function take(own, kind, fields, size) {
    if (own.messages.length >= MOST_MESSAGES || own.chars + size > MOST_CHARS) {
        if (kind === "event") { own.isWhole = false; if (fields.stage === "upstream") own.lost++; draw(own); return; }
    }
    own.chars += size;
    own.messages.push([kind, fields]);
    if (kind === "end") own.over = true;
    draw(own);
}

function draw(own) {
    if (own !== watching || own.frame) return;
    own.frame = requestAnimationFrame(() => {
        own.frame = 0;
        if (own !== watching) return;
        if (!own.paused) {
            const table = byId("events-table").closest(".scroll"), follows = table.scrollTop + table.clientHeight > table.scrollHeight - 40;
            for (; own.next < own.messages.length; own.next++) show(own, ...own.messages[own.next]);
            if (follows) table.scrollTop = table.scrollHeight;
        }
        const waiting = own.messages.slice(own.next).filter(([kind, fields]) => kind === "event" && fields.stage === "client").length;
        set(byId("events-count"), own.paused ? `paused, ${waiting} more` : String(own.order.length ? own.order[own.order.length - 1] : 0));
        set(byId("events-lost"), own.lost ? `${own.lost} events are missing: this view is too slow, or keeps no more` : "");
    });
}

function show(own, kind, fields) {
    if (kind === "begin") {
        own.begin = fields;
        if (fields.joined) own.isWhole = false;
        facts({Stream: fields.exchange, Request: `${fields.method} ${fields.path}`, Client: fields.client || "–", Route: fields.route});
        connection("live", `watching ${fields.exchange}`);
    } else if (kind === "head") {
        own.head = fields;
        facts({Status: `${fields.status} ${fields.content_type || ""}`});
        columns(own, fields.interceptors || []);
    } else if (kind === "lost") {
        own.isWhole = false;
        own.lost += fields.events || 0;
    } else if (kind === "event") showEvent(own, fields);
    else if (kind === "end") {
        facts({Outcome: `${fields.outcome}, ${seconds(fields.duration)}, ${bytes(fields.bytes || 0)}`, ...(fields.error ? {Error: fields.error} : {})});
        connection("still", `ended: ${fields.outcome}`);
    } else if (kind === "gone") connection("lost", "this stream has ended");
}

function facts(values) {
    for (const [label, value] of Object.entries(values)) {
        const id = `fact-${label}`;
        if (!byId(id)) {
            const box = make("div"), element = make("dd");
            element.id = id;
            box.append(make("dt", "", label), element);
            byId("facts").append(box);
        }
        set(byId(id), value);
    }
}

function columns(own, names) {
    if (own.names.length === names.length && byId("events-table").tHead.rows.length) return;
    own.names = names;
    const row = make("tr");
    for (const name of ["#", "Time", "After", "From upstream", ...names, "To the client"]) {
        const head = make("th", "", name);
        head.scope = "col";
        row.append(head);
    }
    byId("events-table").tHead.replaceChildren(row);
}

function showEvent(own, fields) {
    let row = own.rows.get(fields.number);
    if (!row) {
        columns(own, own.names);
        row = make("tr");
        row.tabIndex = own.order.length ? -1 : 0;
        row.append(make("td", "number", String(fields.number)), make("td", "time", fields.at.toFixed(3)),
            make("td", "time", own.lastAt === null ? "" : `+${(fields.at - own.lastAt).toFixed(3)}`));
        for (let count = own.names.length + 2; count; count--) row.append(make("td", "stage"));
        own.lastAt = fields.at;
        own.rows.set(fields.number, row);
        own.order.push(fields.number);
        byId("events-table").tBodies[0].append(row);
        if (own.order.length > MOST_ROWS) {
            const old = own.order.shift();
            const oldest = own.rows.get(old);
            if (oldest === document.activeElement && oldest.nextSibling) focusRow(oldest.nextSibling);
            else if (oldest.tabIndex === 0 && oldest.nextSibling) oldest.nextSibling.tabIndex = 0;
            oldest.remove();
            own.rows.delete(old);
        }
    }
    const at = fields.stage === "upstream" ? 0 : fields.stage === "client" ? own.names.length + 1 : own.names.indexOf(fields.stage) + 1;
    const cell = row.cells[3 + (at > 0 || fields.stage === "upstream" ? at : own.names.length + 1)];
    cell.dataset.what = fields.what;
    const words = [fields.what];
    if (fields.problem) words.push(fields.problem);
    if (fields.us) words.push(`${fields.us.toFixed(0)} µs`);
    if (fields.cut) words.push(`${fields.cut} bytes are not shown`);
    if (fields.stage !== "upstream") cell.append(make("div", "what", words.join(", ")));
    else if (fields.cut) cell.append(make("div", "what", words[1]));
    for (const text of fields.texts || []) cell.append(make("pre", "", text.replace(/[\r\n]+$/, "")));
    for (const part of fields.parts || []) showPart(own, part);
}

function showPart(own, part) {
    if (part.kind === "model") set(byId("answer-model"), part.model);
    else if (part.kind === "usage") {
        const counts = Object.entries(part).filter(([name]) => name !== "kind");
        set(byId("answer-usage"), counts.map(([name, count]) => `${name.replace("_", " ")} ${count}`).join(", "));
    } else if (["text", "thinking", "refusal", "other"].includes(part.kind)) {
        if (own.text > MOST_TEXT) return;
        own.text += part.text.length;
        byId("answer-text").append(make("span", part.kind, part.text));
    } else {
        const rest = Object.entries(part).filter(([name, value]) => name !== "kind" && value !== null);
        const words = part.kind === "tool_call" ? `${part.name}(${part.arguments})` : rest.map(([name, value]) => `${name}: ${value}`).join(", ");
        const parts = byId("answer-parts");
        parts.append(make("li", part.kind, `${part.kind.replace("_", " ")} ${words}`));
        if (parts.children.length > MOST_ROWS) parts.firstChild.remove();
    }
}

function clear() {
    for (const id of ["answer-text", "answer-parts", "answer-model", "answer-usage", "facts", "events-lost", "events-count"]) byId(id).replaceChildren();
    byId("events-table").tHead.replaceChildren();
    byId("events-table").tBodies[0].replaceChildren();
    pause(false);
}

// --- A tape, as the interceptor `record` writes it

function tape(own) {
    const lines = [], begin = own.begin || {}, head = own.head || {at: 0, status: 200};
    lines.push({weirpool_tape: 1, method: begin.method || "GET", path: begin.path || "/", status: head.status, headers: {"content-type": head.content_type || "text/event-stream"}});
    let last = 0, isWhole = own.isWhole;
    for (const [kind, fields] of own.messages) {
        last = Math.max(last, Math.round((fields.at - head.at) * 1e6) / 1e6 || 0);
        if (kind === "event" && fields.stage === "upstream") {
            if (fields.cut || fields.body) isWhole = false;
            else lines.push({at: last, ...fieldsOf(fields.texts[0])});
        } else if (kind === "end" && isWhole) lines.push({at: last, end: fields.outcome});
    }
    return lines.map(line => JSON.stringify(line) + "\n").join("");
}

function fieldsOf(block) {
    const found = {}, data = [];
    for (const line of block.replace(/^\ufeff/, "").split(/\r\n|\r|\n/)) {
        const colon = line.indexOf(":"), name = colon < 0 ? line : line.slice(0, colon);
        const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (name === "data") data.push(value);
        else if (name === "event") found.event = value;
        else if (name === "id" && !value.includes("\0")) found.id = value;
        else if (name === "retry" && /^[0-9]+$/.test(value)) found.retry = Number(value);
    }
    if (data.length) found.data = data.join("\n");
    return found;
}

function download() {
    if (!watching || !watching.begin) return;
    const link = make("a"), url = URL.createObjectURL(new Blob([tape(watching)], {type: "application/jsonl"}));
    link.href = url;
    link.download = `weirpool-${watching.begin.exchange}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// --- Controls

function pause(paused) {
    if (watching) watching.paused = paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    if (watching) draw(watching);
}

function stop() {
    if (!watching) return;
    watching.abort.abort();
    if (!watching.over) { watching.isWhole = false; watching.over = true; connection("still", "stopped"); }
}

function focusRow(row) {
    for (const other of byId("events-table").tBodies[0].querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
}

function toggle(row) {
    row.toggleAttribute("data-open");
}

byId("next").addEventListener("submit", event => {
    event.preventDefault();
    const query = {once: "true"};
    for (const [name, value] of new FormData(event.target)) if (value) query[name] = value;
    watch(query);
});
byId("pause").addEventListener("click", () => pause(!(watching && watching.paused)));
byId("stop").addEventListener("click", stop);
byId("download").addEventListener("click", download);
byId("events-table").tBodies[0].addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (row && !String(getSelection())) { focusRow(row); toggle(row); }
});
document.addEventListener("keydown", event => {
    if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = event.target.closest && event.target.closest("#events-table tbody tr");
    const near = row && (event.key === "ArrowDown" ? row.nextSibling : event.key === "ArrowUp" ? row.previousSibling : null);
    if (near) { event.preventDefault(); focusRow(near); }
    else if (row && event.key === "Enter") { event.preventDefault(); toggle(row); }
    else if (event.key === "p") pause(!(watching && watching.paused));
    else if (event.key === "d") download();
    else if (event.key === "Escape") stop();
});

list();
