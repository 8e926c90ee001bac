-- The beginning of what a compressed text stands for (RFC 1950 to 1952), to look into it without expanding it all.
--
-- Nothing here is longer than what is asked for, whatever the text says of itself, and a code that is none ends it.

local LENGTHS = { 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258 }
local LENGTH_BITS = { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0 }
local ORDER = { 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15 }
local LONGEST_CODE = 15
local MOST_BLOCKS = 4 -- who compresses in one go begins a second after thousands of bytes; each costs a table

-- Reads numbers of so many bits from the text, lowest first, from a place on.
local function bits_of(text, place)
  local held, count = 0, 0
  local function take(size)
    while count < size do
      local byte = text:byte(place) or error("it ends early")
      held, count, place = held + byte * 2 ^ count, count + 8, place + 1
    end
    local value = held % 2 ^ size
    held, count = (held - value) / 2 ^ size, count - size
    return value
  end
  local function to_next_byte()
    held, count = 0, 0
  end
  return take, to_next_byte
end

-- A canonical Huffman code of symbols from 0, by the lengths of their codes, which stand in a table from a place on:
-- how many are of each length, and which.
local function code_of(lengths, start, count)
  local code, next_of, place = { counts = {}, symbols = {} }, {}, 1
  for length = 1, LONGEST_CODE do
    code.counts[length] = 0
  end
  for symbol = 0, count - 1 do
    local length = lengths[start + symbol]
    if length > 0 then
      code.counts[length] = code.counts[length] + 1
    end
  end
  for length = 1, LONGEST_CODE do
    next_of[length], place = place, place + code.counts[length]
  end
  for symbol = 0, count - 1 do
    local length = lengths[start + symbol]
    if length > 0 then
      code.symbols[next_of[length]] = symbol
      next_of[length] = next_of[length] + 1
    end
  end
  return code
end

local function symbol_of(code, take)
  local value, first, index = 0, 0, 1
  for length = 1, LONGEST_CODE do
    value = value + take(1)
    local count = code.counts[length]
    if value < first + count then
      return code.symbols[index + value - first]
    end
    index, first, value = index + count, 2 * (first + count), 2 * value
  end
  error("no symbol")
end

local function fixed_codes()
  local lengths, distances = {}, {}
  for symbol = 0, 287 do
    lengths[symbol + 1] = symbol < 144 and 8 or symbol < 256 and 9 or symbol < 280 and 7 or 8
  end
  for symbol = 1, 30 do
    distances[symbol] = 5
  end
  return code_of(lengths, 1, 288), code_of(distances, 1, 30)
end

local FIXED_LENGTHS, FIXED_DISTANCES = fixed_codes()

local function own_codes(take)
  local num_lengths, num_distances, num_own = 257 + take(5), 1 + take(5), 4 + take(4)
  local own = {}
  for symbol = 1, #ORDER do
    own[symbol] = 0
  end
  for number = 1, num_own do
    own[ORDER[number] + 1] = take(3)
  end
  local code, all = code_of(own, 1, #ORDER), {}
  while #all < num_lengths + num_distances do
    local symbol = symbol_of(code, take)
    local value, times = symbol, 1
    if symbol == 16 then
      value, times = all[#all] or error("nothing to repeat"), 3 + take(2)
    elseif symbol == 17 then
      value, times = 0, 3 + take(3)
    elseif symbol == 18 then
      value, times = 0, 11 + take(7)
    end
    for _ = 1, times do
      all[#all + 1] = value
    end
  end
  return code_of(all, 1, num_lengths), code_of(all, num_lengths + 1, num_distances)
end

local function expand_block(out, wanted, take, lengths, distances)
  while #out < wanted do
    local symbol = symbol_of(lengths, take)
    if symbol == 256 then
      return
    elseif symbol < 256 then
      out[#out + 1] = string.char(symbol)
    else
      local row = symbol - 256
      local length = (LENGTHS[row] or error("no length")) + take(LENGTH_BITS[row])
      local distance = symbol_of(distances, take) -- one less than it
      if distance > 3 then
        local extra = math.floor(distance / 2) - 1
        distance = (2 + distance % 2) * 2 ^ extra + take(extra)
      end
      for _ = 1, math.min(length, wanted - #out) do
        out[#out + 1] = out[#out - distance] or error("before the beginning")
      end
    end
  end
end

local function expand(out, wanted, text, place)
  local take, to_next_byte = bits_of(text, place)
  for _ = 1, MOST_BLOCKS do
    local is_last = take(1) == 1
    local kind = take(2)
    if kind == 0 then
      to_next_byte()
      local length = take(16)
      take(16) -- the same again, inverted
      for _ = 1, math.min(length, wanted - #out) do
        out[#out + 1] = string.char(take(8))
      end
    elseif kind == 1 then
      expand_block(out, wanted, take, FIXED_LENGTHS, FIXED_DISTANCES)
    elseif kind == 2 then
      expand_block(out, wanted, take, own_codes(take))
    else
      error("no such block")
    end
    if is_last or #out >= wanted then
      return
    end
  end
end

-- The first bytes of what gzip or zlib made the text of, as far as it goes.
local function beginning_of(text, encoding, wanted)
  local out = {}
  local place = encoding == "gzip" and text:sub(1, 4) == "\31\139\8\0" and 11 -- without a file's name and the like
    or encoding == "deflate" and 3
  if place then
    pcall(expand, out, wanted, text, place)
  end
  return table.concat(out)
end

