#!/usr/bin/env node
// Sends the forwarder's dead letters through its queue again, once what kept them from the webhook is mended:
//
//   node redrive.mjs [--list]
//
// --list shows them, and why they died, and leaves them where they are. CLOUDFLARE_ACCOUNT_ID says which account, and
// CLOUDFLARE_API_TOKEN is a token with the permission "Queues: Edit". The dead letters' queue needs a pull consumer:
// https://developers.cloudflare.com/queues/configuration/pull-consumers/
//
// A letter is let go only once its event is in the other queue. So where this ends halfway, none is lost; one may be
// sent twice, and starts no run twice.

const QUEUE = "tunedrop-r2-events";
const DEAD_LETTERS = "tunedrop-r2-dead-letters";
const API = process.env.CLOUDFLARE_API_BASE_URL ?? "https://api.cloudflare.com/client/v4";
const { CLOUDFLARE_ACCOUNT_ID: ACCOUNT, CLOUDFLARE_API_TOKEN: TOKEN } = process.env;
const LARGEST_BATCH = 50; // 100 are allowed, and 256 KB: an event is 2 KB at most, its letter 3 KB

async function api(method, path, body) {
  const response = await fetch(`${API}/accounts/${ACCOUNT}/queues${path}`, {
    method,
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });
  const answer = await response.json().catch(() => ({}));
  if (!answer.success) {
    throw new Error(`${method} ${path}: Cloudflare answered ${response.status}: ${JSON.stringify(answer.errors ?? [])}`);
  }
  return answer.result;
}

async function idOf(name) {
  const found = await api("GET", `?name=${name}`);
  const queue = found.find(({ queue_name }) => queue_name === name);
  if (!queue) throw new Error(`the account has no queue ${name}`);
  return queue.queue_id;
}

/** What the forwarder wrote, or an event that the queue itself gave up, which has no reason. */
function letterOf({ body, metadata }) {
  const text = metadata?.["CF-Content-Type"] === "text" ? body : Buffer.from(body, "base64").toString();
  const letter = JSON.parse(text);
  return letter && "event" in letter ? letter : { event: letter, reason: "given up by the queue" };
}

async function redrive(list) {
  const [queue, letters] = [await idOf(QUEUE), await idOf(DEAD_LETTERS)];
  const began = Date.now();
  const held = new Set();
  let count = 0;
  const settle = (acks, retries) =>
    api("POST", `/${letters}/messages/ack`, {
      acks: acks.map((lease_id) => ({ lease_id })),
      retries: retries.map((lease_id) => ({ lease_id })),
    });
  try {
    for (;;) {
      const { messages } = await api("POST", `/${letters}/messages/pull`, { batch_size: LARGEST_BATCH });
      for (const { lease_id } of messages) held.add(lease_id);
      // What has died since this began comes of it: to send that again might never end.
      const old = messages.filter(({ timestamp_ms }) => timestamp_ms < began);
      if (old.length === 0) break;
      const found = old.map(letterOf);
      if (!list) {
        const again = found.map(({ event }) => ({ body: event, content_type: "json" }));
        await api("POST", `/${queue}/messages/batch`, { messages: again });
        const leases = old.map(({ lease_id }) => lease_id);
        await settle(leases, []);
        for (const lease of leases) held.delete(lease);
      }
      for (const { event, reason } of found) {
        console.log(`${list ? "dead" : "sent"}  ${event?.object?.key ?? JSON.stringify(event)}  ${reason}`);
      }
      count += old.length;
    }
  } finally {
    if (held.size) await settle([], [...held]);
  }
  console.log(`${count} dead ${count === 1 ? "letter" : "letters"}${list ? "" : " sent again"}`);
}

try {
  if (!ACCOUNT || !TOKEN) throw new Error("set CLOUDFLARE_ACCOUNT_ID and CLOUDFLARE_API_TOKEN");
  await redrive(process.argv.includes("--list"));
} catch (error) {
  console.error(`${error.message}`);
  process.exitCode = 1;
}
