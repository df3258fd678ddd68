// Runs MCP sessions with clients from npm and prints what each session saw.
//
// stdin: a line of JSON {sessions: [{name, client, url, path, steps: [...]}], at_once, timeout_ms}. `url` has no path but the prefix;
// `path` is where the old transport's stream is.
// stdout: a line of JSON {name: {steps: [what each step gave], requests: [...]}}.
//
// A step is {op, ...}:
//   {op: 'list'}                            the tools, as the server describes them
//   {op: 'call', tool, arguments}           {result, progress?} or {error: {code, message}}
//   {op: 'together', calls: [{tool, arguments}]}   the same for several calls at once
//   {op: 'listening', count}                waits until `count` GETs have been answered with a stream
//   {op: 'notified', count}                 waits until `count` notifications of a changed list have come
// A step that takes longer than `timeout_ms` gives 'timeout'. After two of them the other steps are left out.

import { createInterface } from 'node:readline';
import { createMCPClient } from '@ai-sdk/mcp';
import * as ai1 from '@ai-sdk/mcp-1';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { ToolListChangedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';

class Session {
  requests = [];
  sent = []; // what fetch gave for everything but GET
  progress = [];
  listening = 0;
  notified = 0;
  waiting = new Set();

  constructor(url, path) {
    this.url = url;
    this.stream = url + path;
  }

  // Every request goes through here. Paths are relative to the prefix; what does not lie under it stays absolute.
  fetch = async (input, init) => {
    const url = new URL(input);
    const base = new URL(this.url);
    const prefix = base.pathname.replace(/\/$/, '');
    const inside = url.origin === base.origin && url.pathname.startsWith(prefix + '/');
    const headers = new Headers(init?.headers);
    const request = {
      method: init?.method ?? 'GET',
      path: inside ? url.pathname.slice(prefix.length) : url.origin + url.pathname,
      version: headers.get('mcp-protocol-version'),
      session: headers.has('mcp-session-id'),
      last_event_id: headers.get('last-event-id'),
      status: null,
    };
    this.requests.push(request);
    const sent = fetch(input, init);
    if (request.method !== 'GET') this.sent.push(sent);
    const response = await sent;
    request.status = response.status;
    if (request.method === 'GET' && response.status === 200) {
      this.listening += 1;
      this.wake();
    }
    // The AI SDK takes a session id from any answer. The Python server's 400 to its GET before `initialize` has the id of a
    // session that is gone, and may come later than the answer to `initialize`. That happens without a proxy, too.
    if (response.ok || !response.headers.has('mcp-session-id')) return response;
    const kept = new Headers(response.headers);
    kept.delete('mcp-session-id');
    return new Response(response.body, { status: response.status, statusText: response.statusText, headers: kept });
  };

  note = () => {
    this.notified += 1;
    this.wake();
  };

  wake() {
    for (const look of this.waiting) look();
  }

  until(what, count) {
    return new Promise(resolve => {
      const look = () => {
        if (this[what] >= count) {
          this.waiting.delete(look);
          resolve(count);
        }
      };
      this.waiting.add(look);
      look();
    });
  }
}

// The official SDK.
async function official(session, transport) {
  const client = new Client({ name: 'test', version: '1' });
  client.setNotificationHandler(ToolListChangedNotificationSchema, session.note);
  client.onerror = () => {};
  await client.connect(transport);
  // `onprogress` misses what comes in one piece with the result, so this looks at the messages.
  const { onmessage } = transport;
  transport.onmessage = (message, extra) => {
    if (message.method === 'notifications/progress') {
      const { progress, total, message: text } = message.params;
      session.progress.push([progress, total, text]);
    }
    onmessage(message, extra);
  };
  return {
    list: async () => (await client.listTools()).tools,
    call: async (tool, args) => {
      const result = await client.callTool({ name: tool, arguments: args }, undefined, { onprogress: () => {} });
      return { result, progress: session.progress.splice(0) };
    },
    close: async () => {
      await transport.terminateSession?.();
      await client.close();
    },
  };
}

// The AI SDK. It has no progress, and reports every notification as an error.
async function ai(session, create, transport, options = {}) {
  const client = await create({
    transport: { ...transport, fetch: session.fetch },
    onUncaughtError: error => error.message === 'Unsupported message type' && session.note(),
    ...options,
  });
  return {
    list: async () => (await client.listTools()).tools,
    call: async (tool, args) => ({ result: await client.callTool({ name: tool, arguments: args, args }) }),
    close: () => client.close(),
  };
}

// What a client of the old transport may be configured to send, and what means something on the other transport only.
const OTHERS = { 'last-event-id': '7', 'mcp-session-id': 'mine', 'mcp-protocol-version': '2025-11-25' };

const CLIENTS = {
  'sdk sse, headers': s =>
    official(s, new SSEClientTransport(new URL(s.stream), { fetch: s.fetch, requestInit: { headers: OTHERS } })),
  'sdk sse': s => official(s, new SSEClientTransport(new URL(s.stream), { fetch: s.fetch })),
  'sdk http': s => official(s, new StreamableHTTPClientTransport(new URL(s.url + '/mcp'), { fetch: s.fetch })),
  'ai sse': s => ai(s, createMCPClient, { type: 'sse', url: s.stream }),
  'ai http': s => ai(s, createMCPClient, { type: 'http', url: s.url + '/mcp' }),
  'ai http legacy': s => ai(s, createMCPClient, { type: 'http', url: s.url + '/mcp' }, { protocolVersionDiscovery: false }),
  'ai1 sse': s => ai(s, ai1.experimental_createMCPClient, { type: 'sse', url: s.stream }),
  'ai1 http': s => ai(s, ai1.experimental_createMCPClient, { type: 'http', url: s.url + '/mcp' }),
};

// Where all sessions wait for each other, and then for a line of stdin.
const TIMEOUT = Symbol('timeout');

function within(timeout_ms, promise) {
  let timer;
  const late = new Promise(resolve => (timer = setTimeout(resolve, timeout_ms, TIMEOUT)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const failure = error => ({ error: { code: error.code ?? null, message: String(error.message) } });

function take(client, session, step) {
  switch (step.op) {
    case 'list':
      return client.list();
    case 'call':
      return client.call(step.tool, step.arguments).catch(failure);
    case 'together':
      return Promise.all(step.calls.map(call => client.call(call.tool, call.arguments).catch(failure)));
    case 'listening':
    case 'notified':
      return session.until(step.op, step.count);
    default:
      throw new Error(`unknown step ${step.op}`);
  }
}

async function run({ client: kind, url, path, steps }, timeout_ms) {
  const session = new Session(url, path);
  const seen = [];
  const outcome = () => ({ steps: seen, requests: session.requests });
  let client;
  try {
    client = await within(timeout_ms, CLIENTS[kind](session));
  } catch (error) {
    client = failure(error);
  }
  if (client === TIMEOUT || client.error) {
    return { ...outcome(), connect: client.error ? client : 'timeout' };
  }
  let late = 0;
  for (const step of steps) {
    if (late === 2) break;
    const result = await within(timeout_ms, take(client, session, step)).catch(failure);
    seen.push(result === TIMEOUT ? 'timeout' : result);
    late += result === TIMEOUT ? 1 : 0;
  }
  await within(timeout_ms, Promise.allSettled(session.sent)); // a result may come before its POST has a status
  await within(timeout_ms, client.close()).catch(() => {});
  return outcome();
}

// What a client leaves to nobody (a fetch that it does not await) must not end the other sessions.
process.on('unhandledRejection', () => {});

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { sessions, at_once, timeout_ms } = JSON.parse((await lines.next()).value);
const queue = [...sessions];
const results = {};
async function work() {
  for (let session; (session = queue.shift()); ) results[session.name] = await run(session, timeout_ms);
}
await Promise.all(Array.from({ length: at_once }, work));
process.stdout.write(JSON.stringify(results) + '\n', () => process.exit(0));
