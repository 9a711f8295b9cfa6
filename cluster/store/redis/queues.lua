-- Everything that one node asks of one partition in one turn of its loop: see queues.py.
--
-- KEYS[1] is "PREFIX{partition}:life"; all other keys begin alike, so they share its hash slot.
-- ARGV: node, number of this call, number of the node's last answered call, a generation in case
-- one is needed, count of shards, and a msgpack array of operations: names and their arguments.
-- Answer: generation, wakes of the asking node (queue, at, ...), then one answer per operation.
--
--   life            "generation/partitions": another one than before says that something was lost
--   sent:NODE       number of the node's last call
--   lost            when a loss was found (Redis TIME in ms); absent if there never was one
--   counted         shards whose owners have told again what workers hold
--   types           task types that have queues here
--   lanes:TYPE      queues of a type, the one served last at the end
--   starved:TYPE    a pop left due tasks because all slots were taken
--   rate:TYPE       when each task of the present rate window was handed out
--   task:QUEUE      id -> "delivery priority due record" if it waits, "delivery" if it is held
--   ready:QUEUE     due tasks by priority, then due time; half a ms earlier if handed back
--   later:QUEUE     tasks not yet due, by due time; the fraction is the priority
--   held:QUEUE      tasks in workers' hands by the time at which their owner is asked
--   out             queues by the earliest such time
--   asleep:QUEUE    nodes that will not look into the queue before a time, unless woken
--   turns           counts up: the order in which queues were served

local LEVEL = 4398046511104 -- 2^42 ms: above every due time, below 2^53 with 100 priorities
local FRACTION = 128
local NEVER = 9007199254740992
local HAND_OUT_MS = 30000
local PROMOTED_MAX = 20000
local POPPED_BYTES_MAX = 8388608
local COUNTING_MS = 250

local prefix = string.sub(KEYS[1], 1, -5)
local node, sequence, answered = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local shard_count = tonumber(ARGV[5])
local words = cmsgpack.unpack(ARGV[6])
local call = redis.call

local function server_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function begin_anew(was_lost)
  call('SET', KEYS[1], ARGV[4])
  call('DEL', prefix .. 'counted')
  if was_lost then
    call('SET', prefix .. 'lost', server_ms())
  end
  return ARGV[4]
end

local generation = call('GET', KEYS[1])
if generation and string.match(generation, '/.*') ~= string.match(ARGV[4], '/.*') then
  return redis.error_reply(
    'PARTITIONS the queues here are divided into ' .. string.match(generation, '/(.*)') ..
    ', this node is set to ' .. string.match(ARGV[4], '/(.*)') .. ': all nodes have to agree'
  )
end
local last = tonumber(call('GET', prefix .. 'sent:' .. node) or 0)
if not generation or last < answered then
  -- Empty, or a server took over that has not seen what was answered to this node.
  generation = begin_anew(answered > 0)
end
call('SET', prefix .. 'sent:' .. node, math.max(last, sequence), 'EX', 3600)

-- wakes

local own_wakes, others_wakes = {}, {}

local function tell(sleeper, queue, at)
  local wakes = own_wakes
  if sleeper ~= node then
    wakes = others_wakes[sleeper]
    if not wakes then
      wakes = {}
      others_wakes[sleeper] = wakes
    end
  end
  wakes[#wakes + 1] = queue
  wakes[#wakes + 1] = at
end

-- Wake up to `count` nodes that would look later than `at` (0 = now); the asking node first.
local function wake(queue, at, count)
  local key = prefix .. 'asleep:' .. queue
  local function one(sleeper)
    tell(sleeper, queue, at)
    if at > 0 then
      call('ZADD', key, at, sleeper)
    else
      call('ZREM', key, sleeper)
    end
  end
  local until_ms = call('ZSCORE', key, node)
  if until_ms and tonumber(until_ms) > at then
    one(node)
    count = count - 1
  end
  if count > 0 then
    local found = call('ZRANGE', key, '(' .. string.format('%.0f', at), '+inf', 'BYSCORE', 'LIMIT', 0, count)
    for _, sleeper in ipairs(found) do
      one(sleeper)
    end
  end
end

-- The asking node looks into the queue: what it leaves there it is told by the answer.
local function heard(queue)
  for index = #own_wakes - 1, 1, -2 do
    if own_wakes[index] == queue then
      table.remove(own_wakes, index + 1)
      table.remove(own_wakes, index)
    end
  end
end

local function sleep(queue, until_ms)
  local key = prefix .. 'asleep:' .. queue
  call('ZADD', key, until_ms, node)
  call('EXPIRE', key, 60)
end

-- queues and their types

local function open_lane(queue, kind)
  if call('EXISTS', prefix .. 'task:' .. queue) == 0 then
    call('SADD', prefix .. 'types', kind)
    call('ZADD', prefix .. 'lanes:' .. kind, 'NX', call('INCR', prefix .. 'turns'), queue)
  end
end

local function is_waiting(queue)
  return call('EXISTS', prefix .. 'ready:' .. queue, prefix .. 'later:' .. queue) > 0
end

local function free(kind, slots)
  if slots > 0 and call('DEL', prefix .. 'starved:' .. kind) == 1 then
    for _, queue in ipairs(call('ZRANGE', prefix .. 'lanes:' .. kind, 0, -1)) do
      if is_waiting(queue) then
        wake(queue, 0, slots)
      end
    end
  end
end

local function ready_score(priority, due)
  return (99 - priority) * LEVEL + due
end

local function delivery_of(record)
  return tonumber(string.match(record, '^%d+'))
end

-- operations: each takes the index of its first argument, returns its answer and the next index

local operations = {}

local function listed(first, count)
  local found = {}
  for index = first, first + count - 1 do
    found[#found + 1] = words[index]
  end
  return found
end

function operations.push(first)
  local queue, kind, now, count = words[first], words[first + 1], tonumber(words[first + 2]), tonumber(words[first + 3])
  local tasks = prefix .. 'task:' .. queue
  open_lane(queue, kind)
  local ids, records, next_one = {}, {}, first + 4 + 2 * count
  for index = first + 4, next_one - 1, 2 do
    ids[#ids + 1] = words[index]
    records[#records + 1] = words[index + 1]
  end
  local known = call('HMGET', tasks, unpack(ids))
  local accepted, freed = {}, 0
  for index, id in ipairs(ids) do
    local before = accepted[id] and records[accepted[id]] or known[index]
    if not before or delivery_of(records[index]) > delivery_of(before) then
      if not accepted[id] and known[index] then
        if call('ZREM', prefix .. 'ready:' .. queue, id) + call('ZREM', prefix .. 'later:' .. queue, id) == 0 then
          freed = freed + call('ZREM', prefix .. 'held:' .. queue, id)
        end
      end
      accepted[id] = index
    end
  end
  local ready, later, stored = {}, {}, {}
  local first_due, due_count, later_count = NEVER, 0, 0
  for id, index in pairs(accepted) do
    local _, priority, due = string.match(records[index], '^(%d+) (%d+) (%d+) ')
    priority, due = tonumber(priority), tonumber(due)
    stored[#stored + 1] = id
    stored[#stored + 1] = records[index]
    if due <= now then
      due_count = due_count + 1
      ready[#ready + 1] = ready_score(priority, due)
      ready[#ready + 1] = id
    else
      later_count = later_count + 1
      later[#later + 1] = due + priority / FRACTION
      later[#later + 1] = id
      first_due = math.min(first_due, due)
    end
  end
  if #stored > 0 then
    call('HSET', tasks, unpack(stored))
  end
  if due_count > 0 then
    call('ZADD', prefix .. 'ready:' .. queue, unpack(ready))
    wake(queue, 0, due_count)
  end
  if later_count > 0 then
    call('ZADD', prefix .. 'later:' .. queue, unpack(later))
    wake(queue, first_due, later_count)
  end
  free(kind, freed)
  return 0, next_one
end

local function promote(queue, now)
  local ready, later = prefix .. 'ready:' .. queue, prefix .. 'later:' .. queue
  for _ = 1, PROMOTED_MAX, 1000 do
    local due = call('ZRANGE', later, '-inf', '(' .. string.format('%.0f', now + 1), 'BYSCORE', 'LIMIT', 0, 1000, 'WITHSCORES')
    if #due == 0 then
      return
    end
    local moved, ids = {}, {}
    for index = 1, #due, 2 do
      local score = tonumber(due[index + 1])
      local due_ms = math.floor(score)
      moved[#moved + 1] = ready_score((score - due_ms) * FRACTION, due_ms)
      moved[#moved + 1] = due[index]
      ids[#ids + 1] = due[index]
    end
    call('ZADD', ready, unpack(moved))
    call('ZREM', later, unpack(ids))
  end
end

-- When a further pop may find something: now, at a later due time, or nil.
local function next_due(queue, now)
  if call('EXISTS', prefix .. 'ready:' .. queue) == 1 then
    return now
  end
  local later = call('ZRANGE', prefix .. 'later:' .. queue, 0, 0, 'WITHSCORES')
  return later[2] and math.floor(tonumber(later[2]))
end

local function take(queue, count, now, answer)
  if count < 1 then
    return 0
  end
  local tasks, ready = prefix .. 'task:' .. queue, prefix .. 'ready:' .. queue
  local ids = call('ZRANGE', ready, 0, count - 1)
  if #ids == 0 then
    return 0
  end
  local held, out, bytes, taken = {}, {}, 0, 0
  local deadline = now + HAND_OUT_MS
  for start = 1, #ids, 50 do
    local stop = math.min(start + 49, #ids)
    local records = call('HMGET', tasks, unpack(ids, start, stop))
    for index = 1, stop - start + 1 do
      local id, record = ids[start + index - 1], records[index]
      local delivery = record and string.match(record, '^(%d+) ')
      taken = taken + 1
      if delivery then
        bytes = bytes + #record
        answer[#answer + 1] = id
        answer[#answer + 1] = record
        held[#held + 1] = id
        held[#held + 1] = delivery
        out[#out + 1] = deadline
        out[#out + 1] = id
      else
        -- Somebody else's hands were in here: whatever else is missing must be pushed again.
        generation = begin_anew(true)
      end
      if bytes > POPPED_BYTES_MAX then
        break
      end
    end
    if bytes > POPPED_BYTES_MAX then
      break
    end
  end
  call('ZREMRANGEBYRANK', ready, 0, taken - 1)
  if #held > 0 then
    call('HSET', tasks, unpack(held))
    call('ZADD', prefix .. 'held:' .. queue, unpack(out))
    call('ZADD', prefix .. 'out', 'LT', deadline, queue)
  end
  return #held / 2
end

local function held_of(kind)
  local held = 0
  for _, queue in ipairs(call('ZRANGE', prefix .. 'lanes:' .. kind, 0, -1)) do
    held = held + call('ZCARD', prefix .. 'held:' .. queue)
  end
  return held
end

-- How many the rate lets go now, and when it lets the next one go if that is none.
local function rate_room(kind, now, rate, window)
  local key = prefix .. 'rate:' .. kind
  local newest = call('LINDEX', key, -1)
  if newest and tonumber(newest) > now then
    -- The clock was set back: let the window pass once more instead of waiting for the clock.
    local stamps = call('LRANGE', key, 0, -1)
    for index, stamp in ipairs(stamps) do
      call('LSET', key, index - 1, string.format('%.0f', math.min(tonumber(stamp), now)))
    end
  end
  local oldest = call('LINDEX', key, 0)
  while oldest and tonumber(oldest) <= now - window do
    call('LPOP', key)
    oldest = call('LINDEX', key, 0)
  end
  return math.max(rate - call('LLEN', key), 0)
end

local function window_opens(kind, now, rate, window)
  local stamp = call('LINDEX', prefix .. 'rate:' .. kind, -rate)
  return stamp and tonumber(stamp) + window or now
end

function operations.pop(first)
  local queue, kind = words[first], words[first + 1]
  local count, now = tonumber(words[first + 2]), tonumber(words[first + 3])
  local concurrent, rate, window = tonumber(words[first + 4]), tonumber(words[first + 5]), tonumber(words[first + 6])
  local answer, again, cut, held, quiet_until = { '', '' }, nil, '', 0, nil
  heard(queue)
  promote(queue, now)
  local room = count
  if concurrent >= 0 then
    held = held_of(kind)
    room = math.min(room, concurrent - held)
    if call('SCARD', prefix .. 'counted') < shard_count then
      quiet_until = now + COUNTING_MS
      cut = 'concurrent'
    end
  end
  if rate > 0 then
    room = math.min(room, rate_room(kind, now, rate, window))
    local lost = call('GET', prefix .. 'lost')
    local since = lost and server_ms() - tonumber(lost)
    if since and since < window then
      -- Nobody knows how many went out just before the loss.
      quiet_until = now + window - since
      cut = 'rate'
    end
  end
  if quiet_until then
    room = 0
  end
  local taken = take(queue, room, now, answer)
  if taken > 0 and rate > 0 then
    local stamps = {}
    for index = 1, taken do
      stamps[index] = string.format('%.0f', now)
    end
    call('RPUSH', prefix .. 'rate:' .. kind, unpack(stamps))
    call('PEXPIRE', prefix .. 'rate:' .. kind, window + 60000)
  end
  if taken > 0 and (concurrent >= 0 or rate > 0) then
    -- The queue that was served goes last, so that no domain starves the others.
    call('ZADD', prefix .. 'lanes:' .. kind, call('INCR', prefix .. 'turns'), queue)
  end
  again = next_due(queue, now)
  if again and quiet_until then
    again = math.max(again, quiet_until)
  elseif again then
    local is_due = again <= now
    if concurrent >= 0 and held + taken >= concurrent then
      call('SET', prefix .. 'starved:' .. kind, 1)
      again = nil
      cut = is_due and 'concurrent' or ''
    elseif rate > 0 then
      local opens = window_opens(kind, now, rate, window)
      again = math.max(again, opens)
      cut = is_due and opens > now and 'rate' or ''
    end
  else
    cut = ''
  end
  if not again then
    sleep(queue, NEVER)
  else
    answer[1] = string.format('%.0f', again)
    if again > now then
      sleep(queue, again)
    end
  end
  answer[2] = cut
  return answer, first + 7
end

function operations.back(first)
  local queue, kind, count = words[first], words[first + 1], tonumber(words[first + 2])
  local next_one, freed = first + 3 + 2 * count, 0
  for index = first + 3, next_one - 1, 2 do
    local id, record = words[index], words[index + 1]
    local delivery, priority, due = string.match(record, '^(%d+) (%d+) (%d+) ')
    if call('HGET', prefix .. 'task:' .. queue, id) == delivery then
      call('ZREM', prefix .. 'held:' .. queue, id)
      call('HSET', prefix .. 'task:' .. queue, id, record)
      call('ZADD', prefix .. 'ready:' .. queue, ready_score(tonumber(priority), tonumber(due)) - 0.5, id)
      freed = freed + 1
    end
  end
  if freed > 0 then
    wake(queue, 0, freed)
    free(kind, freed)
  end
  return 0, next_one
end

function operations.acknowledge(first)
  local queue, kind, count = words[first], words[first + 1], tonumber(words[first + 2])
  local ids = listed(first + 3, count)
  local removed = call('HDEL', prefix .. 'task:' .. queue, unpack(ids))
  if removed > 0 then
    local freed = call('ZREM', prefix .. 'held:' .. queue, unpack(ids))
    if freed < removed then
      call('ZREM', prefix .. 'ready:' .. queue, unpack(ids))
      call('ZREM', prefix .. 'later:' .. queue, unpack(ids))
    end
    free(kind, freed)
  end
  return 0, first + 3 + count
end

-- Not to be handed out, says the owner of what was popped: not if a later delivery has come since.
function operations.refuse(first)
  local queue, kind, count = words[first], words[first + 1], tonumber(words[first + 2])
  local next_one, freed = first + 3 + 2 * count, 0
  for index = first + 3, next_one - 1, 2 do
    local id = words[index]
    if call('HGET', prefix .. 'task:' .. queue, id) == string.format('%.0f', words[index + 1]) then
      call('HDEL', prefix .. 'task:' .. queue, id)
      freed = freed + call('ZREM', prefix .. 'held:' .. queue, id)
    end
  end
  free(kind, freed)
  return 0, next_one
end

function operations.hold(first)
  local queue, kind, count = words[first], words[first + 1], tonumber(words[first + 2])
  open_lane(queue, kind)
  local next_one = first + 3 + 2 * count
  for index = first + 3, next_one - 1, 2 do
    local id = words[index]
    call('HSET', prefix .. 'task:' .. queue, id, words[index + 1])
    call('ZREM', prefix .. 'ready:' .. queue, id)
    call('ZREM', prefix .. 'later:' .. queue, id)
    -- Its owner has spoken: nobody asks him again.
    call('ZADD', prefix .. 'held:' .. queue, NEVER, id)
  end
  return 0, next_one
end

function operations.unknown(first)
  local queue, count = words[first], tonumber(words[first + 1])
  local found = {}
  for index = first + 2, first + 1 + count do
    if call('HEXISTS', prefix .. 'task:' .. queue, words[index]) == 0 then
      found[#found + 1] = words[index]
    end
  end
  return found, first + 2 + count
end

-- The earliest due time of a waiting task: the first one of each priority, and of those not due.
local function oldest(queue)
  local found, from = NEVER, 0
  while true do
    local head = call('ZRANGE', prefix .. 'ready:' .. queue, string.format('%.1f', from - 0.5), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if not head[1] then
      break
    end
    local score = math.floor(tonumber(head[2]) + 0.5)
    local level = math.floor(score / LEVEL)
    found = math.min(found, score - level * LEVEL)
    from = (level + 1) * LEVEL
  end
  local later = call('ZRANGE', prefix .. 'later:' .. queue, 0, 0, 'WITHSCORES')
  if later[2] then
    found = math.min(found, math.floor(tonumber(later[2])))
  end
  return found < NEVER and string.format('%.0f', found) or ''
end

local function size_into(answer, queue)
  answer[#answer + 1] = queue
  answer[#answer + 1] = call('ZCARD', prefix .. 'ready:' .. queue) + call('ZCARD', prefix .. 'later:' .. queue)
  answer[#answer + 1] = call('ZCARD', prefix .. 'held:' .. queue)
  answer[#answer + 1] = oldest(queue)
end

function operations.sizes(first)
  local count, answer = tonumber(words[first]), {}
  for index = first + 1, first + count do
    size_into(answer, words[index])
  end
  return answer, first + 1 + count
end

-- Of all queues that hold a task; the others are forgotten on the way.
function operations.all_sizes(first)
  local answer = {}
  for _, kind in ipairs(call('SMEMBERS', prefix .. 'types')) do
    local lanes = prefix .. 'lanes:' .. kind
    for _, queue in ipairs(call('ZRANGE', lanes, 0, -1)) do
      if call('EXISTS', prefix .. 'task:' .. queue) == 1 then
        size_into(answer, queue)
      else
        call('ZREM', lanes, queue)
      end
    end
    if call('EXISTS', lanes) == 0 then
      call('SREM', prefix .. 'types', kind)
    end
  end
  return answer, first
end

-- Hand-outs that nobody has confirmed in time; each is listed again only after another while.
function operations.expired(first)
  local now, count, answer = tonumber(words[first]), tonumber(words[first + 1]), {}
  for _, queue in ipairs(call('ZRANGE', prefix .. 'out', '-inf', now, 'BYSCORE', 'LIMIT', 0, count)) do
    local held, again = prefix .. 'held:' .. queue, {}
    local left = count - #answer / 3
    if left < 1 then
      break
    end
    for _, id in ipairs(call('ZRANGE', held, '-inf', now, 'BYSCORE', 'LIMIT', 0, left)) do
      answer[#answer + 1] = queue
      answer[#answer + 1] = id
      answer[#answer + 1] = call('HGET', prefix .. 'task:' .. queue, id) or '0'
      again[#again + 1] = now + HAND_OUT_MS
      again[#again + 1] = id
    end
    if #again > 0 then
      call('ZADD', held, unpack(again))
    end
    local next_one = call('ZRANGE', held, 0, 0, 'WITHSCORES')
    if next_one[2] and tonumber(next_one[2]) < NEVER then
      call('ZADD', prefix .. 'out', next_one[2], queue)
    else
      call('ZREM', prefix .. 'out', queue)
    end
  end
  return answer, first + 2
end

-- Which of the queues that sleep have something after all: wakes are messages and may be lost.
function operations.look(first)
  local now, count = tonumber(words[first]), tonumber(words[first + 1])
  for index = first + 2, first + 1 + count do
    local due = next_due(words[index], now)
    if due then
      tell(node, words[index], due > now and due or 0)
    end
  end
  return 0, first + 2 + count
end

-- A wake found nobody here: it goes on to the next who sleeps.
function operations.pass_on(first)
  local queue = words[first]
  call('ZREM', prefix .. 'asleep:' .. queue, node)
  if is_waiting(queue) then
    wake(queue, 0, 1)
  end
  return 0, first + 1
end

function operations.counted(first)
  local seen, count = words[first], tonumber(words[first + 1])
  if seen == generation and count > 0 then
    call('SADD', prefix .. 'counted', unpack(listed(first + 2, count)))
  end
  return 0, first + 2 + count
end

function operations.uncounted(first)
  local seen, count = words[first], tonumber(words[first + 1])
  local found = {}
  for _, shard in ipairs(listed(first + 2, count)) do
    if seen ~= generation or call('SISMEMBER', prefix .. 'counted', shard) == 0 then
      found[#found + 1] = shard
    end
  end
  return found, first + 2 + count
end

local answers = { generation, own_wakes }
local index = 1
while index <= #words do
  local answer, next_one = operations[words[index]](index + 1)
  answers[#answers + 1] = answer
  index = next_one
end
answers[1] = generation
for sleeper, wakes in pairs(others_wakes) do
  call('PUBLISH', string.match(prefix, '^[^{]*') .. 'wake:' .. sleeper, cmsgpack.pack(wakes))
end
return answers
