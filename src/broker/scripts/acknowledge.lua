#!lua flags=allow-oom
-- Takes entries out whose events are committed. An entry is taken out once, however often this is called.
-- KEYS: stream, queued
-- ARGV: group, then for each entry: id, events, bytes
local events, bytes = 0, 0
for place = 2, #ARGV, 3 do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[place])
  if redis.call('XDEL', KEYS[1], ARGV[place]) == 1 then
    events = events + tonumber(ARGV[place + 1])
    bytes = bytes + tonumber(ARGV[place + 2])
  end
end
redis.call('HINCRBY', KEYS[2], 'events', 0 - events)
redis.call('HINCRBY', KEYS[2], 'bytes', 0 - bytes)
return events
