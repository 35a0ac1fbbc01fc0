-- Sum the buckets of several windows in one partition, next to the data: what travels is the sums, however long the windows.
--
-- KEYS  the buckets, of any resolution
-- ARGV  for each window: the index of its first bucket in KEYS, and of its last
-- Returns one flat list (field, sum, field, sum ...) per window; fields that have come to zero are left out.
local hashes = {}
local function bucket(index)
  if hashes[index] == nil then
    hashes[index] = redis.call('HGETALL', KEYS[index])
  end
  return hashes[index]
end
local answer = {}
for arg = 1, #ARGV, 2 do
  local sums = {}
  for index = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]) do
    local pairs_of = bucket(index)
    for item = 1, #pairs_of, 2 do
      sums[pairs_of[item]] = (sums[pairs_of[item]] or 0) + tonumber(pairs_of[item + 1])
    end
  end
  local flat = {}
  for field, sum in pairs(sums) do
    if sum ~= 0 then
      flat[#flat + 1] = field
      flat[#flat + 1] = sum
    end
  end
  answer[#answer + 1] = flat
end
return answer
