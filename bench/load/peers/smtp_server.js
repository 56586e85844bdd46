// Nodemailer's smtp-server, accepting everything and throwing it away.  node smtp_server.js PORT
"use strict";
const { SMTPServer } = require("smtp-server");

const server = new SMTPServer({
    name: "bench.example.org",
    authOptional: true,
    disabledCommands: ["AUTH", "STARTTLS"],
    disableReverseLookup: true,
    maxClients: 20000,
    onData(stream, session, callback) {
        stream.resume();
        stream.on("end", () => callback());
    },
});
server.listen(Number(process.argv[2]), "127.0.0.1");
