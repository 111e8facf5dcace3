-- The requests that wrk sends, and its result as JSON.
-- Arguments: scenario, file with paths of tasks, path of a long list, offset of a deep page in it, path of that page by cursor.
local scenario, tasks, owner, cursor, depth
local headers = {["Content-Type"] = "application/json"}
local scenarios = {}

local function task() return tasks[math.random(#tasks)] end
local function list() return task():match("^(.*)/") end
local function send(method, path, body) return wrk.format(method, path, headers, body) end

scenarios["get"] = function() return wrk.format("GET", task()) end
scenarios["list-20"] = function() return wrk.format("GET", list() .. "?limit=20") end
scenarios["list-50"] = function() return wrk.format("GET", list() .. "?limit=50") end
scenarios["create"] = function()
  return send("POST", list(), '{"title": "Buy milk and bread", "description": "Two of each, and mind the date."}')
end
scenarios["update"] = function() return send("PUT", task(), '{"title": "Buy milk ' .. math.random(1000) .. '", "completed": true}') end
scenarios["toggle"] = function() return wrk.format("PATCH", task() .. "/complete") end
scenarios["deep-offset"] = function() return wrk.format("GET", owner .. "?limit=50&offset=" .. depth) end
scenarios["deep-cursor"] = function() return wrk.format("GET", cursor) end
scenarios["first-page"] = function() return wrk.format("GET", owner .. "?limit=50") end
scenarios["search"] = function() return wrk.format("GET", owner .. "?search=milk+9") end
scenarios["search-none"] = function() return wrk.format("GET", owner .. "?search=nowhere") end
scenarios["total"] = function() return wrk.format("GET", owner .. "?limit=1&total=true") end
scenarios["mix"] = function()
  local dice = math.random(10)
  local name = dice <= 5 and "get" or dice <= 7 and "list-20" or ({[8] = "create", [9] = "update", [10] = "toggle"})[dice]
  return scenarios[name]()
end

function init(args)
  scenario, owner, depth, cursor, tasks = scenarios[args[1]], args[3], args[4], args[5], {}
  for line in io.lines(args[2]) do tasks[#tasks + 1] = line end
  math.randomseed(1) -- all servers get the same requests
end

function request() return scenario() end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "rejected": %d, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
