#!lua flags=allow-oom
-- Tells the others that an instance is there, keeps its leases, takes free ones up to its share, and looks at the whole. One
-- that takes no part is not there for the others and has no share; it keeps what it has, until it gives it back.
-- KEYS: queued, dead, token, instances, meta, then the lease of each partition, then the stream of each partition
-- ARGV: instance, lease time in ms, partitions, smallest token, store, whether it takes part ('yes' or 'no')
-- Answers nothing when the broker is another store's by now, else: share, events, bytes, letters, age of the oldest entry
-- in ms, then for each lease: partition, token
local instance, lease_time, partitions = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local meta = redis.call('HMGET', KEYS[5], 'store', 'partitions')
if not meta[1] then
  -- Redis was emptied since this instance connected.
  redis.call('HSET', KEYS[5], 'store', ARGV[5], 'partitions', ARGV[3])
elseif meta[1] ~= ARGV[5] or meta[2] ~= ARGV[3] then
  return {}
end
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
-- What lasts longer than anybody asks for is from before the clock was set back, maybe of an instance that is dead. Twice the
-- time, so that small steps of the clock take nothing from those who are there; a lease that is taken from one is fenced off.
local too_long = 2 * lease_time
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[4], string.format('(%.0f', now + too_long), '+inf')
local share = 0
if ARGV[6] == 'yes' then
  redis.call('ZADD', KEYS[4], now + lease_time, instance)
  share = math.ceil(partitions / redis.call('ZCARD', KEYS[4]))
else
  redis.call('ZREM', KEYS[4], instance)
end

local has, leases = {}, {}
local function keep(partition, token)
  has[partition] = true
  leases[#leases + 1] = partition
  leases[#leases + 1] = token
end
-- By what stands here, not by what the instance says: it has not heard of those whose answer was lost, and its name is new
-- with each start.
for partition = 0, partitions - 1 do
  local lease = KEYS[6 + partition]
  local owner, token = string.match(redis.call('GET', lease) or '', '^(.*):(%d+)$')
  if owner == instance then
    redis.call('PEXPIRE', lease, lease_time)
    keep(partition, tonumber(token))
  end
end
for partition = 0, partitions - 1 do
  if #leases / 2 >= share then break end
  local lease = KEYS[6 + partition]
  local left = redis.call('PTTL', lease)
  if not has[partition] and (left == -2 or left > too_long) then
    -- Larger than all before: also when Redis has lost its counter, by the clock, and when the clock was set back, by
    -- what the store refused.
    local token = math.max(tonumber(redis.call('GET', KEYS[3]) or 0) + 1, micros, tonumber(ARGV[4]))
    local text = string.format('%.0f', token)
    redis.call('SET', KEYS[3], text)
    redis.call('SET', lease, instance .. ':' .. text, 'PX', lease_time)
    keep(partition, token)
  end
end

local entries, oldest = 0, nil
for partition = 0, partitions - 1 do
  local stream = KEYS[6 + partitions + partition]
  local length = redis.call('XLEN', stream)
  entries = entries + length
  if length > 0 then
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
    local at = tonumber(string.match(first, '^%d+'))
    if not oldest or at < oldest then oldest = at end
  end
end
local letters = redis.call('XLEN', KEYS[2])
-- Whoever removes streams or letters by hand takes them out of the counts as well, at the latest when none is left.
if entries == 0 then redis.call('HDEL', KEYS[1], 'events', 'bytes') end
if letters == 0 then redis.call('HDEL', KEYS[1], 'dead_events', 'dead_bytes') end
local held = redis.call('HMGET', KEYS[1], 'events', 'bytes')
local answer = {
  share, tonumber(held[1] or 0), tonumber(held[2] or 0), letters, oldest and math.max(now - oldest, 0) or 0,
}
for _, number in ipairs(leases) do answer[#answer + 1] = number end
return answer
