#!lua flags=allow-oom
-- Takes one entry out and keeps what of it could not be committed as dead letters; once, however often this is called.
-- KEYS: stream, queued, dead
-- ARGV: group, id, events, bytes, partition, deliveries, then for each letter: reason, events, data; no data stands for
--       the entry as it is, whatever is in it
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not found then return 0 end
-- What a script has done stays when Redis refuses what follows: a command by an access list, a key of another type. So all
-- that is to be done after the letters is done first with no effect, or each try would leave letters and take nothing out.
redis.call('XACK', KEYS[1], ARGV[1], '0-0')
redis.call('XDEL', KEYS[1], '0-0')
for _, count in ipairs({ 'dead_events', 'dead_bytes', 'events', 'bytes' }) do
  redis.call('HINCRBY', KEYS[2], count, 0)
end
local letters, dead_events, dead_bytes = 0, 0, 0
for place = 7, #ARGV, 3 do
  local reason, events, data = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  local letter = { 'partition', ARGV[5], 'entry', ARGV[2], 'deliveries', ARGV[6], 'reason', reason }
  local bytes = #data
  if data == '' then
    for _, text in ipairs(found[2]) do letter[#letter + 1] = text end
    bytes = tonumber(ARGV[4])
  else
    for _, text in ipairs({ 'events', events, 'data', data }) do letter[#letter + 1] = text end
  end
  redis.call('XADD', KEYS[3], '*', unpack(letter))
  letters, dead_events, dead_bytes = letters + 1, dead_events + tonumber(events), dead_bytes + bytes
end
redis.call('HINCRBY', KEYS[2], 'dead_events', dead_events)
redis.call('HINCRBY', KEYS[2], 'dead_bytes', dead_bytes)
-- 0 - 0 is 0, but -0 is written as -0, which is no number for Redis.
redis.call('HINCRBY', KEYS[2], 'events', 0 - tonumber(ARGV[3]))
redis.call('HINCRBY', KEYS[2], 'bytes', 0 - tonumber(ARGV[4]))
-- Last: whatever of this cannot be done, the entry must not be lost.
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return letters
