-- Adds the entries of one publish, all of them or none.
-- KEYS: meta, queued, then the stream of each entry
-- ARGV: store, partitions, most events, most bytes, events, bytes, then for each entry: events, data
local meta = redis.call('HMGET', KEYS[1], 'store', 'partitions')
if not meta[1] then
  -- Redis was emptied since this instance connected.
  redis.call('HSET', KEYS[1], 'store', ARGV[1], 'partitions', ARGV[2])
elseif meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then
  return 'changed'
end
local held = redis.call('HMGET', KEYS[2], 'events', 'bytes', 'dead_events', 'dead_bytes')
local events = tonumber(held[1] or 0) + tonumber(held[3] or 0) + tonumber(ARGV[5])
local bytes = tonumber(held[2] or 0) + tonumber(held[4] or 0) + tonumber(ARGV[6])
if events > tonumber(ARGV[3]) or bytes > tonumber(ARGV[4]) then
  return 'full'
end
for number = 3, #KEYS do
  local place = 7 + 2 * (number - 3)
  redis.call('XADD', KEYS[number], '*', 'events', ARGV[place], 'data', ARGV[place + 1])
end
redis.call('HINCRBY', KEYS[2], 'events', ARGV[5])
redis.call('HINCRBY', KEYS[2], 'bytes', ARGV[6])
return 'added'
