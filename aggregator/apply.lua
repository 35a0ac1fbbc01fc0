-- Apply one step to one partition: the counts and the position they came from move together, or not at all.
--
-- KEYS  1 position   2 tracks   3 totals   4 cameras   5 clocks   6.. a hash per bucket, each followed by the key of its mark
-- ARGV  1 start, 2 end ('offset:revision', or '' for none), 3 and 4 the seconds after which tracks, cameras and clocks, and after
--       which totals and the position are gone, where nothing is applied any more; 5 the mark of the buckets that this step
--       changes, never given before; then six lists, each led by its length in items:
--       tracks to set (field, value), tracks to forget (field), totals (field, amount), cameras (field, value), clocks (field, value),
--       and for each bucket, in the order of KEYS: the second at which it expires, and its (field, amount) pairs.
-- Returns 1 when applied, 0 where the position is not the start.
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then
  return 0
end
local next_arg = 6
local function take()
  local value = ARGV[next_arg]
  next_arg = next_arg + 1
  return value
end
for _ = 1, tonumber(take()) do
  local field = take()
  redis.call('HSET', KEYS[2], field, take())
end
for _ = 1, tonumber(take()) do
  redis.call('HDEL', KEYS[2], take())
end
for _ = 1, tonumber(take()) do
  local field = take()
  redis.call('HINCRBY', KEYS[3], field, take())
end
for _ = 1, tonumber(take()) do
  local field = take()
  redis.call('HSET', KEYS[4], field, take())
end
for _ = 1, tonumber(take()) do
  local field = take()
  redis.call('HSET', KEYS[5], field, take())
end
for key = 6, #KEYS, 2 do
  local expires = take()
  for _ = 1, tonumber(take()) do
    local field = take()
    redis.call('HINCRBY', KEYS[key], field, take())
  end
  redis.call('SET', KEYS[key + 1], ARGV[5], 'EXAT', expires)  -- readers ask for what is marked otherwise than they know
  redis.call('EXPIREAT', KEYS[key], expires)
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[4])
redis.call('EXPIRE', KEYS[3], ARGV[4])
for _, key in ipairs({KEYS[2], KEYS[4], KEYS[5]}) do
  redis.call('EXPIRE', key, ARGV[3])
end
return 1
