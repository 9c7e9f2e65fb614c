-- Leases tokens of an endpoint's rate limit: `Bucket::reserve` of relay-core, kept for all pods. KEYS: bucket.
-- ARGV: pod, interval_us, burst, wanted, reserve_us, batch_us, pods_us. Returns count, first_us, pods (those that
-- asked within pods_us, with this one).

local bucket, pod = KEYS[1], ARGV[1]
local interval, burst, wanted = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local reserve, batch, pods_for = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local slack = (burst - 1) * interval
local due, pods = now, 1
local found = redis.call('HGETALL', bucket)
for i = 1, #found, 2 do
  local field, value = found[i], tonumber(found[i + 1])
  if field == 'due' then
    due = math.min(math.max(value, now), now + slack + reserve + batch + interval)
  elseif value < now - pods_for then
    redis.call('HDEL', bucket, field)
  elseif field ~= 'p:' .. pod then
    pods = pods + 1
  end
end
local first, count = due - slack - now, 0
if first <= reserve then
  count = math.min(wanted, math.floor((math.max(first, 0) + batch - first) / interval) + 1)
end
due = due + count * interval
redis.call('HSET', bucket, 'due', string.format('%.0f', due), 'p:' .. pod, string.format('%.0f', now))
redis.call('PEXPIRE', bucket, math.ceil(math.max(due - now, pods_for) / 1000))
return { count, first, pods }
