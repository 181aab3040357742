#!lua flags=allow-oom
-- Gives leases back that the caller still has.
-- KEYS: leases
-- ARGV: the value of each
for number, lease in ipairs(KEYS) do
  if redis.call('GET', lease) == ARGV[number] then redis.call('DEL', lease) end
end
return #KEYS
