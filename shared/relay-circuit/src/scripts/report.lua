-- Takes what a pod saw of some endpoints. KEYS: open set, probe set, wait set, then the hash of each endpoint.
-- ARGV: channel, keep_ms, calls_min, failure_percent, parts, then 12 for each endpoint, as read below.
-- Returns for each: changed (0 or 1), open before (0 or 1), word, milliseconds.

local channel, keep_ms = ARGV[1], tonumber(ARGV[2])
local calls_min, failure_percent, parts = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local open_set, probe_set, wait_set = KEYS[1], KEYS[2], KEYS[3]
local now = now_ms()

-- Counts calls; returns whether the circuit opens.
local function count(hash, calls, failures, had_success, trailing, threshold, window_ms)
  local part_ms = math.max(1, math.floor(window_ms / parts))
  local number = math.floor(now / part_ms)
  local all_calls, all_failures, streak = calls, failures, {}
  local found = redis.call('HGETALL', hash)
  for i = 1, #found, 2 do
    local field, value = found[i], found[i + 1]
    local kind, part = string.match(field, '^([cf]):(%d+)$')
    if kind then
      if tonumber(part) <= number - parts or tonumber(part) > number then
        redis.call('HDEL', hash, field)
      elseif kind == 'c' then
        all_calls = all_calls + tonumber(value)
      else
        all_failures = all_failures + tonumber(value)
      end
    elseif field == 'streak' and not had_success then
      for at in string.gmatch(value, '%d+') do
        if tonumber(at) >= now - window_ms then
          streak[#streak + 1] = at
        end
      end
    end
  end
  for _ = 1, math.min(trailing, threshold) do
    streak[#streak + 1] = string.format('%.0f', now)
  end
  while #streak > threshold do
    table.remove(streak, 1)
  end
  redis.call('HINCRBY', hash, 'c:' .. number, calls)
  redis.call('HINCRBY', hash, 'f:' .. number, failures)
  redis.call('HSET', hash, 'streak', table.concat(streak, ','))
  redis.call('PEXPIRE', hash, window_ms + keep_ms)
  if trailing > 0 and #streak >= threshold then
    return true
  end
  return failures > 0 and all_calls >= calls_min and all_failures * 100 >= all_calls * failure_percent
end

local replies = {}
for i = 0, #KEYS - 4 do
  local hash, at = KEYS[4 + i], 6 + i * 12
  local endpoint = ARGV[at]
  local calls, failures = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local had_success, trailing = ARGV[at + 3] == '1', tonumber(ARGV[at + 4])
  local threshold, window_ms, open_ms = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  local opens, probe = ARGV[at + 8] == '1', ARGV[at + 9]
  local wait_ms, restore_ms = tonumber(ARGV[at + 10]), tonumber(ARGV[at + 11])

  local was_open = state_of(hash, now) ~= 'closed'
  local changed = true
  if was_open and probe == 'success' then
    close_circuit(hash, open_set, probe_set, endpoint)
    announce(channel, endpoint, 'closed', 0)
  elseif was_open and probe == 'failure' then
    open_circuit(hash, open_set, probe_set, endpoint, open_ms, keep_ms, now)
    announce(channel, endpoint, 'open', open_ms)
  elseif was_open then
    changed = false
  else
    -- A probe that failed while this Redis knew of no open circuit: it is open all the same.
    opens = opens or probe == 'failure'
    if calls > 0 and count(hash, calls, failures, had_success, trailing, threshold, window_ms) then
      opens = true
    end
    changed = opens
    if opens then
      open_circuit(hash, open_set, probe_set, endpoint, open_ms, keep_ms, now)
      announce(channel, endpoint, 'open', open_ms)
    elseif restore_ms > 0 then
      -- Known to a pod and not to us: this Redis lost its memory.
      open_circuit(hash, open_set, probe_set, endpoint, restore_ms, keep_ms, now)
    end
  end
  if wait_ms > 0 then
    local known = redis.call('ZSCORE', wait_set, endpoint)
    if not known or tonumber(known) < now + wait_ms then
      redis.call('ZADD', wait_set, now + wait_ms, endpoint)
      announce(channel, endpoint, 'waiting', wait_ms)
    end
  end

  local word, ms = state_of(hash, now)
  replies[#replies + 1] = { changed and 1 or 0, was_open and 1 or 0, word, ms }
end
return replies
