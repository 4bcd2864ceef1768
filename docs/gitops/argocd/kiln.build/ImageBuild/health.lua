-- Health of an ImageBuild. Its status follows kstatus: observedGeneration, Ready, Reconciling, Stalled.
local hs = { status = "Progressing", message = "Waiting for the operator to see the ImageBuild" }

if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return hs
end

local found = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  found[condition.type] = condition
end
local ready, reconciling, stalled = found["Ready"], found["Reconciling"], found["Stalled"]

-- Work that goes on comes first: a suspended build whose pod is still to end is not at rest.
if reconciling ~= nil and reconciling.status == "True" then
  hs.message = reconciling.message
elseif stalled ~= nil and stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = stalled.message
elseif ready ~= nil and ready.status == "True" then
  hs.status = "Healthy"
  hs.message = ready.message
elseif ready ~= nil and ready.reason == "Suspended" then
  hs.status = "Suspended"
  hs.message = ready.message
end
return hs
