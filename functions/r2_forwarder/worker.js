/**
 * The R2 forwarder: takes the bucket's events from their queue, posts them to Tunedrop's webhook as S3 notifications,
 * and lets each message go, come again or become a dead letter by what the webhook answers.
 *
 * A batch is posted together; whatever fails in company is posted in half the company the next time, until each is
 * alone. So nothing holds up others for long, neither a message that breaks the webhook nor a batch that takes it too
 * much time. Refused for good is only what was alone, or a request whose contents do not matter (a wrong secret or
 * address).
 *
 * Bindings, see wrangler.jsonc: WEBHOOK_URL and WEBHOOK_SECRET, the queue DEAD_LETTERS, and the numbers below it there.
 */

/** Of Cloudflare Queues: https://developers.cloudflare.com/queues/platform/limits/ */
const LARGEST_BATCH = 100;
const LONGEST_DELAY_SECONDS = 86_400;
const LARGEST_SEND_BYTES = 200_000; // of 256 KB in one call

const MAX_KEY_BYTES = 1024;
const MAX_REASON_CHARACTERS = 500;

/** https://developers.cloudflare.com/r2/buckets/event-notifications/ and the S3 guide's list of event types. */
const EVENT_NAMES = {
  PutObject: "s3:ObjectCreated:Put",
  CopyObject: "s3:ObjectCreated:Copy",
  CompleteMultipartUpload: "s3:ObjectCreated:CompleteMultipartUpload",
  DeleteObject: "s3:ObjectRemoved:Delete",
  LifecycleDeletion: "s3:LifecycleExpiration:Delete",
};

/** The message is no event of R2; says why. */
class NoEvent extends Error {}

export default {
  async queue(batch, env) {
    const events = [];
    const dead = [];
    for (const message of batch.messages) {
      try {
        events.push({ message, record: s3Record(message.body) });
      } catch (error) {
        if (!(error instanceof NoEvent)) throw error;
        dead.push({ message, reason: error.message });
      }
    }
    let silent = false;
    for (const company of companies(events)) {
      const answer = silent ? { status: 0, reason: "the webhook did not answer just before" } : await post(company, env);
      silent = answer.status === 0;
      dead.push(...settle(company, answer, env));
    }
    await bury(dead, env);
  },
};

/** An event of R2 as a record of an S3 notification. Throws NoEvent. */
function s3Record(event) {
  const { account, action, bucket, object, eventTime } = event ?? {};
  const key = object?.key;
  for (const [name, value] of Object.entries({ action, bucket, "object.key": key, eventTime })) {
    if (typeof value !== "string" || value === "") throw new NoEvent(`no event of R2: ${name} is missing`);
  }
  if (!key.isWellFormed() || new TextEncoder().encode(key).length > MAX_KEY_BYTES) {
    throw new NoEvent(`no event of R2: object.key is no Unicode text of at most ${MAX_KEY_BYTES} bytes`);
  }
  return {
    eventVersion: "2.1",
    eventSource: "cloudflare:r2",
    awsRegion: "auto",
    eventTime,
    eventName: EVENT_NAMES[action] ?? `r2:${action}`,
    userIdentity: { principalId: account },
    s3: {
      s3SchemaVersion: "1.0",
      bucket: { name: bucket, ownerIdentity: { principalId: account }, arn: `arn:aws:s3:::${bucket}` },
      object: { key: formEncoded(key), size: object.size, eTag: object.eTag },
    },
  };
}

/** A key as S3 writes it in notifications: form-encoded but for its slashes. */
function formEncoded(key) {
  return encodeURIComponent(key).replaceAll("%20", "+").replaceAll("%2F", "/");
}

/** The events that are posted together: all at the first attempt, half as many at each further one. */
function companies(events) {
  const found = [];
  for (const [attempts, together] of Map.groupBy(events, ({ message }) => message.attempts)) {
    const size = Math.max(1, LARGEST_BATCH >> Math.min(attempts - 1, 31));
    for (let start = 0; start < together.length; start += size) found.push(together.slice(start, start + size));
  }
  return found;
}

/** Posts events; the webhook's answer as {status, retryAfter, malformed, reason}, status 0 where there was none. */
async function post(company, env) {
  const body = JSON.stringify({ Records: company.map(({ record }) => record) });
  try {
    const id = await messageId(company);
    const response = await fetch(env.WEBHOOK_URL, {
      method: "POST",
      body,
      headers: { "content-type": "application/json", "user-agent": "tunedrop-r2-forwarder", ...(await signed(id, body, env)) },
      redirect: "manual",
      signal: AbortSignal.timeout(env.TIMEOUT_SECONDS * 1000),
    });
    const text = await response.text();
    log("posted", { id, messages: company.length, status: response.status });
    return {
      status: response.status,
      retryAfter: secondsOf(response.headers.get("retry-after")),
      malformed: malformedIn(text),
      reason: `the webhook answered ${response.status}: ${text}`.slice(0, MAX_REASON_CHARACTERS),
    };
  } catch (error) {
    // Whatever it is, a network that fails, a time-out or a secret that is not set yet, may pass.
    log("not answered", { messages: company.length, error: String(error) });
    return { status: 0, reason: `the webhook did not answer: ${error}`.slice(0, MAX_REASON_CHARACTERS) };
  }
}

/** Lets messages go or has them come again; returns those that are refused for good, with the reason. */
function settle(company, { status, retryAfter, malformed, reason }, env) {
  if (status >= 200 && status < 300) {
    const dead = [];
    company.forEach(({ message }, number) => {
      if (malformed?.has(number)) dead.push({ message, reason: malformed.get(number) });
      else message.ack();
    });
    return dead;
  }
  const passes = status === 0 || status === 408 || status === 429 || status >= 500;
  if (!passes && (company.length === 1 || ![400, 413].includes(status))) {
    return company.map(({ message }) => ({ message, reason }));
  }
  const dead = [];
  for (const { message } of company) {
    if (message.attempts > env.RETRIES) dead.push({ message, reason });
    else message.retry({ delaySeconds: passes ? delaySeconds(message.attempts, retryAfter, env) : 0 });
  }
  return dead;
}

/** How long a message waits after so many attempts: twice as long each time, and no less than the webhook asks for. */
function delaySeconds(attempts, retryAfter, env) {
  const growing = Math.min(env.FIRST_DELAY_SECONDS * 2 ** (attempts - 1), env.LONGEST_DELAY_SECONDS);
  return Math.min(Math.ceil(Math.max(growing, retryAfter ?? 0)), LONGEST_DELAY_SECONDS);
}

/** Sends dead letters, each with its reason, and lets their messages go; where that fails, they come again. */
async function bury(dead, env) {
  const letters = dead.map(({ message, reason }) => ({
    body: { reason, attempts: message.attempts, died: new Date().toISOString(), event: message.body },
    contentType: "json",
  }));
  let start = 0;
  while (start < letters.length) {
    let bytes = 0;
    let end = start;
    while (end < letters.length && (end === start || bytes + size(letters[end]) <= LARGEST_SEND_BYTES)) {
      bytes += size(letters[end++]);
    }
    const messages = dead.slice(start, end).map(({ message }) => message);
    try {
      await env.DEAD_LETTERS.sendBatch(letters.slice(start, end));
      for (const message of messages) message.ack();
    } catch (error) {
      log("dead letters not sent", { messages: messages.length, error: String(error) });
      for (const message of messages) message.retry({ delaySeconds: delaySeconds(message.attempts, 0, env) });
    }
    for (const { message, reason } of dead.slice(start, end)) log("dead letter", { key: message.body?.object?.key, reason });
    start = end;
  }
}

function size(letter) {
  return new TextEncoder().encode(JSON.stringify(letter.body)).length;
}

/** The same for the same messages, however often they are posted together. */
async function messageId(company) {
  const ids = company.map(({ message }) => message.id).sort();
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(ids.join(" ")));
  return `msg_${[...new Uint8Array(digest).slice(0, 16)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Standard Webhooks 1.0.0; of several secrets, separated by blanks while one replaces another, each signs. */
async function signed(id, body, env) {
  const timestamp = Math.floor(Date.now() / 1000);
  const content = new TextEncoder().encode(`${id}.${timestamp}.${body}`);
  const signatures = [];
  for (const secret of (env.WEBHOOK_SECRET ?? "").split(/\s+/).filter(Boolean)) {
    const bytes = Uint8Array.from(atob(secret.replace(/^whsec_/, "")), (character) => character.charCodeAt(0));
    const key = await crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const signature = new Uint8Array(await crypto.subtle.sign("HMAC", key, content));
    signatures.push(`v1,${btoa(String.fromCharCode(...signature))}`);
  }
  if (signatures.length === 0) throw new Error("the secret WEBHOOK_SECRET is not set");
  return { "webhook-id": id, "webhook-timestamp": `${timestamp}`, "webhook-signature": signatures.join(" ") };
}

/** Retry-After, which is a number of seconds or a date, in seconds from now. */
function secondsOf(retryAfter) {
  if (!retryAfter) return 0;
  const seconds = /^\d+$/.test(retryAfter.trim()) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : 0;
}

/** The events that the webhook took for malformed, by their number in the notification, with the reason. */
function malformedIn(text) {
  try {
    return new Map((JSON.parse(text).malformed ?? []).map(({ event, reason }) => [event, reason]));
  } catch {
    return new Map();
  }
}

function log(what, facts) {
  console.log(JSON.stringify({ message: what, ...facts }));
}
