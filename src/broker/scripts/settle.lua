-- Queues dead letters again, or deletes them. A letter without data, which oncelog never wrote, cannot be queued.
-- KEYS: queued, dead, then the stream of each partition
-- ARGV: 'requeue' or 'delete', then the id of each letter
-- Answers how many letters there were, and the ids of those that cannot be queued.
local done, refused = 0, {}
for place = 2, #ARGV do
  local letter = redis.call('XRANGE', KEYS[2], ARGV[place], ARGV[place])[1]
  if letter then
    local field = {}
    for number = 1, #letter[2], 2 do field[letter[2][number]] = letter[2][number + 1] end
    local data, events = field.data, tonumber(field.events)
    local stream = KEYS[3 + (tonumber(field.partition) or #KEYS)]
    if ARGV[1] == 'requeue' and not (data and events and stream) then
      refused[#refused + 1] = ARGV[place]
    else
      if ARGV[1] == 'requeue' then
        redis.call('XADD', stream, '*', 'events', events, 'data', data)
        redis.call('HINCRBY', KEYS[1], 'events', events)
        redis.call('HINCRBY', KEYS[1], 'bytes', #data)
      end
      redis.call('XDEL', KEYS[2], ARGV[place])
      redis.call('HINCRBY', KEYS[1], 'dead_events', 0 - (events or 0))
      redis.call('HINCRBY', KEYS[1], 'dead_bytes', 0 - #(data or ''))
      done = done + 1
    end
  end
end
return { done, refused }
