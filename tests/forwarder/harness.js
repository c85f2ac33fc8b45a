// Stands around the forwarder: hands it batches as the queue does, fills the real queue, and keeps the dead letters.
const dead = [];

export default {
  async fetch(request, env) {
    const path = new URL(request.url).pathname.slice(1);
    if (path === "dead") return Response.json(dead);
    const given = await request.json();
    if (path === "queue") {
      await env.EVENTS.sendBatch(given.map((body) => ({ body, contentType: "json" })));
      return Response.json(null);
    }
    const messages = given.map((message) => ({ ...message, timestamp: new Date() }));
    return Response.json(await env[path].queue("a queue", messages));
  },

  async queue(batch) {
    for (const { body } of batch.messages) dead.push(body);
  },
};
