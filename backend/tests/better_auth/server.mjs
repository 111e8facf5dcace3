// A Better Auth server with the settings that a frontend needs, and with its tables in the database of DATABASE_URL.
// It listens on 127.0.0.1:PORT (by default any free port), prints its address when it is ready, and ends at the end of its
// standard input.
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import pg from "pg";

const server = createServer();
await new Promise((listening) => server.listen(Number(process.env.PORT ?? 0), "127.0.0.1", listening));
const baseURL = process.env.BETTER_AUTH_URL ?? `http://127.0.0.1:${server.address().port}`;

const options = {
  baseURL,
  secret: process.env.BETTER_AUTH_SECRET,
  database: new pg.Pool({ connectionString: process.env.DATABASE_URL }),
  advanced: { database: { generateId: "uuid" } },
  emailAndPassword: { enabled: true },
  plugins: [jwt()],
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
  logger: { level: "error" },
};
const { runMigrations } = await getMigrations(options);
await runMigrations();
server.on("request", toNodeHandler(betterAuth(options)));
process.stdin.resume().on("end", () => process.exit());
console.log(`Better Auth: ${baseURL}`);
