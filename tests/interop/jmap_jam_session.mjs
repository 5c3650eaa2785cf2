// jmap-jam reads, writes and sends: node jmap_jam_session.mjs MODULES URL USER PASSWORD
// It only knows bearer tokens; our daemon takes Basic, so fetch is given that instead.
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, url, user, password] = process.argv.slice(2);
const basic = "Basic " + Buffer.from(`${user}:${password}`).toString("base64");
const plainFetch = globalThis.fetch;
globalThis.fetch = (resource, init = {}) => {
  const headers = new Headers(init.headers);
  headers.set("Authorization", basic);
  return plainFetch(resource, { ...init, headers });
};
const entry = path.join(modules, "jmap-jam", "dist", "index.js");
const { default: JamClient } = await import(pathToFileURL(entry).href);

const jam = new JamClient({ sessionUrl: url, bearerToken: "unused" });
const session = await jam.session;
const accountId = await jam.getPrimaryAccount();
const [boxes] = await jam.api.Mailbox.get({ accountId });
const byRole = Object.fromEntries(boxes.list.map((box) => [box.role, box.id]));

const [drafted] = await jam.api.Email.set({
  accountId,
  create: {
    d: {
      mailboxIds: { [byRole.drafts]: true },
      keywords: { $draft: true },
      from: [{ name: "Jam", email: user }],
      to: [{ email: user }],
      subject: "From jmap-jam",
      textBody: [{ partId: "1", type: "text/plain" }],
      bodyValues: { 1: { value: "strawberry" } },
    },
  },
});
const emailId = drafted.created.d.id;
const [identities] = await jam.api.Identity.get({ accountId });
const [sent] = await jam.api.EmailSubmission.set({
  accountId,
  create: { s: { emailId, identityId: identities.list[0].id } },
});

const [{ emails }] = await jam.requestMany((t) => {
  const ids = t.Email.query({
    accountId,
    filter: { inMailbox: byRole.inbox, text: "strawberry" },
  });
  const emails = t.Email.get({
    accountId,
    ids: ids.$ref("/ids"),
    properties: ["id", "subject", "bodyValues", "textBody"],
    fetchTextBodyValues: true,
  });
  return { ids, emails };
});

const blob = await jam.uploadBlob(accountId, new Blob(["jam jar"], { type: "text/plain" }));
const back = await jam.downloadBlob({
  accountId,
  blobId: blob.blobId,
  mimeType: "text/plain",
  fileName: "jar.txt",
});

console.log(
  JSON.stringify({
    username: session.username,
    roles: Object.keys(byRole).sort(),
    undo: sent.created.s.undoStatus,
    subject: emails.list[0].subject,
    value: Object.values(emails.list[0].bodyValues)[0].value,
    blob: await back.text(),
    disposition: back.headers.get("content-disposition"),
  }),
);
