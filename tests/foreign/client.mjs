// A NATS client that has never heard of natsweb (tests/test_foreign.py).
//
//   node client.mjs ask     URL SUBJECT [BODY]   publish with an inbox of our own, count the replies, print JSON
//   node client.mjs request URL SUBJECT [BODY]   request() as everybody calls it, print the reply or the error
//   node client.mjs answer  URL SUBJECT BODY     say "ready", answer one request with BODY, say what came

import { setTimeout as pause } from "node:timers/promises";
import { connect, createInbox } from "@nats-io/transport-node";

const [mode, url, subject, body = ""] = process.argv.slice(2);
const MORE = 500; // milliseconds in which a second reply would have come

setTimeout(() => {
  console.error("client.mjs: nothing came within 15 s");
  process.exit(1);
}, 15_000).unref();

const nc = await connect({ servers: url, reconnect: false, timeout: 5_000 });

function describe(msg) {
  const headers = {};
  for (const name of msg.headers?.keys() ?? []) {
    headers[name] = msg.headers.values(name);
  }
  return { data: msg.string(), headers, status: msg.headers?.code ?? 0 };
}

// Calls `each` for every message, and resolves with the first.
function first(subject, each) {
  return new Promise((resolve, reject) => {
    nc.subscribe(subject, {
      callback: (err, msg) => {
        if (err) return reject(err);
        each(msg);
        resolve(msg);
      },
    });
  });
}

async function ask() {
  const inbox = createInbox();
  let replies = 0;
  const came = first(inbox, () => (replies += 1));
  nc.publish(subject, body, { reply: inbox });
  const msg = await came;
  await pause(MORE);
  console.log(JSON.stringify({ replies, ...describe(msg) }));
}

async function request() {
  try {
    console.log(JSON.stringify(describe(await nc.request(subject, body, { timeout: 10_000 }))));
  } catch (err) {
    console.log(JSON.stringify({ error: (err.cause ?? err).constructor.name }));
  }
}

async function answer() {
  const came = first(subject, (msg) => msg.respond(body));
  await nc.flush(); // from here on the server sends requests to us
  console.error("ready");
  const msg = await came;
  console.error(JSON.stringify({ subject: msg.subject, ...describe(msg) }));
}

await { ask, request, answer }[mode]();
await nc.drain();
