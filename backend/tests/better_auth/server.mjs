// A Better Auth server set up as a frontend's would be, with its tables in the database of DATABASE_URL.
// It listens on 127.0.0.1:PORT (any free one by default), says where once it is ready, and ends with its standard input.
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
