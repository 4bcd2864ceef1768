-- Builds again: the annotation's value must be one that was not handled yet.
local run = 0
if obj.status ~= nil and obj.status.run ~= nil then
  run = obj.status.run
end
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["kiln.build/rebuild"] = "argocd-after-run-" .. run
return obj
