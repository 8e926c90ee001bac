-- The model and version that a call of the Open Inference Protocol names, as headers by which it is routed.
--
-- ModelInfer, ModelReady and ModelMetadata all begin with the name in field 1 and the version in field 2. Before the
-- message stand 5 bytes: whether it is compressed, and its length. A compressed one goes to the default model.

local SERVICE = "/inference.GRPCInferenceService/"
local METHODS = { ModelInfer = true, ModelReady = true, ModelMetadata = true }
local FRAME, LONGEST_NAME = 5, 255

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

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  if path == nil or path:sub(1, #SERVICE) ~= SERVICE then
    return
  end
  headers:remove("x-darkroom-model")
  headers:remove("x-darkroom-version")
  if METHODS[path:sub(#SERVICE + 1)] then
    local body = handle:body()
    local size = body and body:length() or 0
    if size > FRAME and body:getBytes(0, 1) == "\0" then
      local found = named(body:getBytes(FRAME, math.min(size - FRAME, 2 * (LONGEST_NAME + 3))))
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
