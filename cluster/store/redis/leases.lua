-- Signs of life: what one node asks in one turn of its loop, see leases.py.
--
-- KEYS[1] is "PREFIX{life}:token"; all other keys begin alike, so they share its hash slot.
-- ARGV: a token in case there is none, then operations, each a name and its arguments.
-- Answer: one per operation.
--
--   token     written when it was not there: another one says that the server was flushed
--   leases    log -> how often its lease was renewed
--   members   node id -> the member as it last beat
--   until     node ids by the time until which they are listed (Redis TIME in ms)

local prefix = string.sub(KEYS[1], 1, -6)
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

call('SET', KEYS[1], ARGV[1], 'NX')

local operations = {}

function operations.renew(first)
  call('HINCRBY', prefix .. 'leases', ARGV[first], 1)
  return 0, first + 1
end

function operations.drop(first)
  call('HDEL', prefix .. 'leases', ARGV[first])
  return 0, first + 1
end

-- A server that restarted or took over has another run id, and may lack the last renewals.
function operations.leases(first)
  local run = string.match(call('INFO', 'server'), 'run_id:(%w+)')
  return { call('GET', KEYS[1]) .. '/' .. run, call('HGETALL', prefix .. 'leases') }, first
end

function operations.beat(first)
  call('HSET', prefix .. 'members', ARGV[first], ARGV[first + 1])
  call('ZADD', prefix .. 'until', now + ARGV[first + 2], ARGV[first])
  return 0, first + 3
end

local function forget(ids)
  if #ids > 0 then
    call('HDEL', prefix .. 'members', unpack(ids))
    call('ZREM', prefix .. 'until', unpack(ids))
  end
end

function operations.leave(first)
  forget({ ARGV[first] })
  return 0, first + 1
end

function operations.members(first)
  forget(call('ZRANGE', prefix .. 'until', '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000))
  return { now, call('HGETALL', prefix .. 'members') }, first
end

local answers = {}
local index = 2
while index <= #ARGV do
  local answer, next_one = operations[ARGV[index]](index + 1)
  answers[#answers + 1] = answer
  index = next_one
end
return answers
