// MCP servers of the official TypeScript SDK, for tests: both transports, each server with its own sessions.
//
// argv: how many servers. stdout: JSON array of their URLs, one line. Ends when stdin ends.
// Paths: /sse (the old transport), /mcp (Streamable HTTP, resumable, clients return after 50 ms). After GET /sse?name=... the client
// has to send to a URI of that kind in NAMES; without a name to /messages?sessionId=..., as the SDK has it.

import { randomUUID, webcrypto } from 'node:crypto';
import http from 'node:http';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { z } from 'zod';

globalThis.crypto ??= webcrypto; // node 18

const text = value => ({ content: [{ type: 'text', text: String(value) }] });
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

// Keeps what one session was sent.
class Events {
  kept = [];

  async storeEvent(stream, message) {
    this.kept.push({ stream, message });
    return String(this.kept.length);
  }

  async replayEventsAfter(id, { send }) {
    const { stream } = this.kept[Number(id) - 1];
    for (let number = Number(id); number < this.kept.length; number += 1) {
      const { stream: owner, message } = this.kept[number];
      if (owner === stream && Object.keys(message).length) await send(String(number + 1), message);
    }
    return stream;
  }
}

// `leave(how)` cuts the stream on which the session's client listens: 'end' or 'reset'.
function makeServer(leave) {
  const server = new McpServer({ name: 'typescript', version: '1' });

  server.registerTool('add', { inputSchema: { a: z.number(), b: z.number() } }, async ({ a, b }) => text(a + b));

  server.registerTool('count', { inputSchema: { to: z.number() } }, async ({ to }, extra) => {
    await report(extra, 1, to);
    return text(Array.from({ length: to }, (_, index) => index + 1));
  });

  server.registerTool('fail', {}, async () => {
    throw new Error('this tool fails');
  });

  server.registerTool('announce', {}, async () => {
    await server.server.sendToolListChanged();
    return text('announced');
  });

  // Cuts the stream on which the client listens, and says something while it is away.
  server.registerTool('leave', { inputSchema: { how: z.enum(['end', 'reset']) } }, async ({ how }) => {
    if (leave(how)) await server.server.sendToolListChanged();
    return text('left');
  });

  // Closes the call's stream in the middle; the client comes back for the rest.
  server.registerTool('poll', {}, async extra => {
    await report(extra, 1, 1);
    extra.closeSSEStream?.();
    await report(extra, 2, 2);
    await sleep(100);
    await report(extra, 3, 3);
    return text('polled');
  });

  return server;
}

async function report({ _meta, sendNotification }, from, to) {
  if (_meta?.progressToken === undefined) return;
  for (let progress = from; progress <= to; progress += 1) {
    const params = { progressToken: _meta.progressToken, progress, message: `– ${progress} 水` };
    await sendNotification({ method: 'notifications/progress', params });
  }
}

function refuse(response, status, code, message) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ jsonrpc: '2.0', id: null, error: { code, message } }));
}

// Where the session's id may be: the protocol says nothing about it.
const NAMES = {
  'path': id => `/messages/${id}`,
  'middle of the path': id => `/sessions/${id}/messages?v=1`,
  'another parameter': id => `/sse?v=1&sid=${id}`,
  'value only': id => `/messages?${id}`,
};

function handler() {
  const old = new Map(); // session id -> SSEServerTransport
  const sessions = new Map(); // session id -> StreamableHTTPServerTransport
  const listeners = new Map(); // session id -> the response to the GET

  // A comment and `retry` come before the first event, and a notification after it: the client then knows where to send.
  async function openOld(response, name) {
    const transport = new SSEServerTransport('/messages', response);
    const write = response.write.bind(response);
    response.write = (data, ...rest) => {
      response.write = write;
      const event = name ? `event: endpoint\ndata: ${NAMES[name](transport.sessionId)}\n\n` : data;
      return write(`: welcome\nretry: 50\n\n${event}`, ...rest);
    };
    old.set(transport.sessionId, transport);
    response.on('close', () => old.delete(transport.sessionId));
    let leaving = false;
    const send = transport.send.bind(transport);
    transport.send = async message => {
      await send(message);
      if (leaving && 'id' in message) response.end();
    };
    const server = makeServer(() => {
      leaving = true; // when the call has its answer
      return false;
    });
    await server.connect(transport);
    await server.server.sendToolListChanged();
  }

  async function open() {
    const transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      eventStore: new Events(),
      retryInterval: 50,
      onsessioninitialized: id => sessions.set(id, transport),
    });
    const server = makeServer(how => {
      if (how === 'end') transport.closeStandaloneSSEStream();
      else listeners.get(transport.sessionId)?.destroy();
      return true;
    });
    await server.connect(transport);
    return transport;
  }

  return async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = pieces.length ? JSON.parse(Buffer.concat(pieces)) : undefined;
    if (url.pathname === '/sse' && request.method === 'GET') {
      await openOld(response, url.searchParams.get('name'));
    } else if (request.method === 'POST' && /^\/(messages|sessions|sse)\b/.test(url.pathname)) {
      const transport = old.get(request.url.match(/[0-9a-f]{8}-[0-9a-f-]{27}/)?.[0]);
      if (transport === undefined) refuse(response, 404, -32001, 'unknown session');
      else await transport.handlePostMessage(request, response, body);
    } else if (url.pathname === '/mcp') {
      const id = request.headers['mcp-session-id'];
      const transport = sessions.get(id) ?? (id === undefined && body?.method === 'initialize' ? await open() : undefined);
      if (transport === undefined) {
        if (id === undefined) refuse(response, 400, -32000, 'no session');
        else refuse(response, 404, -32001, 'unknown session');
        return;
      }
      if (request.method === 'GET' && !listeners.has(id)) {
        listeners.set(id, response); // a second one is refused while the first is open
        response.on('close', () => listeners.delete(id));
      }
      await transport.handleRequest(request, response, body);
    } else {
      refuse(response, 404, -32000, 'no such path');
    }
  };
}

process.on('unhandledRejection', error => console.error(error)); // one session's fault must not end the others

const urls = [];
for (let number = 0; number < Number(process.argv[2]); number += 1) {
  // Node closes idle connections after 5 s by default, even while a request is arriving.
  const server = http.createServer({ keepAliveTimeout: 60_000 }, handler());
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  urls.push(`http://127.0.0.1:${server.address().port}`);
}
console.log(JSON.stringify(urls));
process.stdin.on('end', () => process.exit(0)).resume();
