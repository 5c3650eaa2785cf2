// What a web mail backend does through imapflow: list, idle, fetch, flag, move, search.
const { ImapFlow } = require("imapflow");

async function main([port, user, pass]) {
  const client = new ImapFlow({
    host: "127.0.0.1", port: Number(port), secure: true, auth: { user, pass },
    tls: { rejectUnauthorized: false }, logger: false, qresync: true,
  });
  const said = { capabilities: [] };
  await client.connect();
  said.capabilities = [...client.enabled];
  said.folders = (await client.list({ statusQuery: { messages: true } }))
    .map((f) => [f.path, f.specialUse || "", f.status && f.status.messages]);
  await client.mailboxCreate(["Projekte", "Grün & Blau"]);
  const lock = await client.getMailboxLock("INBOX");
  try {
    const exists = new Promise((resolve) => client.once("exists", resolve));
    const appended = await client.append("INBOX", "Subject: flow\r\n\r\nfrom imapflow\r\n", ["\\Flagged"]);
    said.exists = (await exists).count;
    said.uid = appended.uid;
    const message = await client.fetchOne("*", {
      uid: true, flags: true, envelope: true, bodyStructure: true, source: true,
      threadId: true, internalDate: true, size: true,
    });
    said.subject = message.envelope.subject;
    said.source = message.source.toString();
    said.emailId = message.emailId;
    said.found = await client.search({ subject: "flow" }, { uid: true });
    await client.messageFlagsAdd({ uid: String(message.uid) }, ["\\Seen", "$Label1"], { uid: true });
    const again = await client.fetchOne(String(message.uid), { flags: true }, { uid: true });
    said.flags = [...again.flags].sort();
    const download = await client.download(String(message.uid), "1", { uid: true });
    let text = "";
    for await (const chunk of download.content) text += chunk;
    said.text = text;
    const moved = await client.messageMove(String(message.uid), "Projekte/Grün & Blau", { uid: true });
    said.moved = [...moved.uidMap.values()];
    said.status = await client.status("Projekte/Grün & Blau", { messages: true, uidNext: true });
    said.quota = await client.getQuota("INBOX");
  } finally {
    lock.release();
  }
  await client.mailboxDelete("Projekte/Grün & Blau");
  await client.logout();
  console.log(JSON.stringify(said));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error, error.response);
  process.exit(1);
});
