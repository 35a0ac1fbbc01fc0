-- Sum the buckets of several windows in one partition, next to the data: what travels is the sums, however long the windows.
--
-- KEYS  the buckets, of any resolution
-- ARGV  for each window: the index of its first bucket in KEYS, and of its last
-- Returns one flat list (field, sum, field, sum ...) per window; fields that have come to zero are left out.
--
-- Windows that end alike are parts of each other: each bucket is read once, the shorter windows on the way to the longest.
local windows = {}
for number = 1, #ARGV / 2 do
  windows[number] = {number = number, first = tonumber(ARGV[2 * number - 1]), last = tonumber(ARGV[2 * number])}
end
table.sort(windows, function(one, other)
  return one.last < other.last or (one.last == other.last and one.first > other.first)
end)
local answer, sums, reached, last = {}, nil, nil, nil
for _, window in ipairs(windows) do
  if window.last ~= last then
    sums, reached, last = {}, window.last + 1, window.last
  end
  for index = reached - 1, window.first, -1 do
    local found = redis.call('HGETALL', KEYS[index])
    for item = 1, #found, 2 do
      local field = found[item]
      sums[field] = (sums[field] or 0) + found[item + 1]
    end
  end
  reached = math.min(reached, window.first)
  local flat = {}
  for field, sum in pairs(sums) do
    if sum ~= 0 then
      flat[#flat + 1] = field
      flat[#flat + 1] = sum
    end
  end
  answer[window.number] = flat
end
return answer
