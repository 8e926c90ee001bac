-- The model and version that a call of the Open Inference Protocol names, as headers by which it is routed.
--
-- ModelInfer, ModelReady and ModelMetadata all begin with the name in field 1 and the version in field 2. Before the
-- message stand 5 bytes: whether it is compressed, and its length. inflate.lua comes before this.

local SERVICE = "/inference.GRPCInferenceService/"
local METHODS = { ModelInfer = true, ModelReady = true, ModelMetadata = true }
local FRAME, LONGEST_NAME = 5, 255
local BEGINNING, COMPRESSED_BEGINNING = 2 * (LONGEST_NAME + 3), 2048 -- bytes

-- A number of 7 bits a byte, and the place behind it; nil where it does not end.
local function number_at(text, place)
  local value, scale = 0, 1
  for position = place, math.min(place + 4, #text) do
    local byte = text:byte(position)
    value = value + (byte % 128) * scale
    if byte < 128 then
      return value, position + 1
    end
    scale = scale * 128
  end
  return nil
end

local function named(text)
  local found, place = {}, 1
  while place <= #text do
    local tag, size
    tag, place = number_at(text, place)
    if tag ~= 10 and tag ~= 18 then -- neither field 1 nor field 2, both texts
      break
    end
    size, place = number_at(text, place)
    if size == nil or size > LONGEST_NAME or place + size - 1 > #text then
      break
    end
    found[tag == 10 and "model" or "version"] = text:sub(place, place + size - 1)
    place = place + size
  end
  return found
end

-- The message's first bytes.
local function beginning(body, encoding)
  local size, is_compressed = body:length() - FRAME, body:getBytes(0, 1) == "\1"
  local text = body:getBytes(FRAME, math.min(size, is_compressed and COMPRESSED_BEGINNING or BEGINNING))
  return is_compressed and beginning_of(text, encoding, BEGINNING) or text
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  if path == nil or path:sub(1, #SERVICE) ~= SERVICE then
    return
  end
  headers:remove("x-darkroom-model")
  headers:remove("x-darkroom-version")
  if METHODS[path:sub(#SERVICE + 1)] then
    local encoding = headers:get("grpc-encoding")
    local body = handle:body()
    if body and body:length() > FRAME then
      local found = named(beginning(body, encoding))
      headers = handle:headers() -- the other one ended when the body was waited for
      for key, value in pairs(found) do
        if value:match("^[%w._-]+$") then
          headers:replace("x-darkroom-" .. key, value)
        end
      end
    end
  end
  handle:clearRouteCache()
end
