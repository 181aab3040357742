#!lua flags=allow-oom
-- Hands the next entries of a partition to the holder of its lease; nobody else gets any.
-- KEYS: lease, stream
-- ARGV: the lease's value, group, consumer, most entries, enough bytes, 'new' or 'pending'
-- Answers nothing without the lease, else the deliveries of the first entry, then for each entry: id, events, data
local group, consumer, most, enough = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end
local function is_error(answer)
  return type(answer) == 'table' and answer.err
end
local function with_group(...)
  local answer = redis.pcall(...)
  if is_error(answer) and string.find(answer.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', KEYS[2], group, '0', 'MKSTREAM')
    answer = redis.pcall(...)
  end
  if is_error(answer) then error(answer.err) end
  return answer
end

local answer, bytes = { 0 }, 0
local function add(entry)
  local events, data = '0', ''
  for place = 1, #entry[2], 2 do
    if entry[2][place] == 'events' then events = entry[2][place + 1] end
    if entry[2][place] == 'data' then data = entry[2][place + 1] end
  end
  bytes = bytes + #data
  answer[#answer + 1] = entry[1]
  answer[#answer + 1] = events
  answer[#answer + 1] = data
end
if ARGV[6] == 'pending' then
  local from = '0-0'
  repeat
    local claimed = with_group('XAUTOCLAIM', KEYS[2], group, consumer, 0, from, 'COUNT', 1)
    from = claimed[1]
    for _, entry in ipairs(claimed[2]) do add(entry) end
  until #answer > 1 or from == '0-0'
  if #answer > 1 then
    answer[1] = redis.call('XPENDING', KEYS[2], group, answer[2], answer[2], 1)[1][4]
  end
  return answer
end
-- A few at a time: how large an entry is shows only when it is read.
local few = 4
while bytes < enough and #answer < 3 * most do
  local read = with_group('XREADGROUP', 'GROUP', group, consumer, 'COUNT', few, 'STREAMS', KEYS[2], '>')
  if not read then break end
  local entries = read[1][2]
  for _, entry in ipairs(entries) do add(entry) end
  if #entries < few then break end
end
if #answer > 1 then answer[1] = 1 end
return answer
