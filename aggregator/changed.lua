-- Read the buckets of one partition that are not as the reader knows them: what travels is what is new.
--
-- KEYS  the buckets, of any resolution
-- ARGV  the mark that the reader knows of each: the step that changed it last; '' where it knows nothing
-- Returns one flat list: the index of a bucket in KEYS, its mark, and (field, amount, field, amount ...), for each that differs.
local answer = {}
for index, key in ipairs(KEYS) do
  local mark = redis.call('HGET', key, '#')
  if not mark or mark ~= ARGV[index] then
    local found = redis.call('HGETALL', key)
    if mark or #found > 0 or ARGV[index] ~= '' then  -- not one that is empty, and known to be: most of a quiet day's
      local size = #answer
      answer[size + 1], answer[size + 2], answer[size + 3] = index, mark or '', found  -- unmarked: of an earlier version
    end
  end
end
return answer
