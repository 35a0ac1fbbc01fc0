-- Read the buckets of one partition that are not as the reader knows them: what travels is what is new.
--
-- KEYS  the buckets, of any resolution, each followed by the key of its mark
-- ARGV  the mark that the reader knows of each, given by the step that changed it last; '' where it knows nothing
-- Returns one flat list: the number of a bucket, its mark, and (field, amount, field, amount ...), for each that differs.
local answer = {}
for number, known in ipairs(ARGV) do
  local mark = redis.call('GET', KEYS[2 * number])
  if not mark or mark ~= known then
    local found = redis.call('HGETALL', KEYS[2 * number - 1])
    if mark or #found > 0 or known ~= '' then  -- not one that is empty, and known to be: most of a quiet day's
      local size = #answer
      answer[size + 1], answer[size + 2], answer[size + 3] = number, mark or '', found  -- unmarked: of an earlier version
    end
  end
end
return answer
