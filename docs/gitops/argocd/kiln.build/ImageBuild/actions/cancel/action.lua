-- Cancels the run that is under way, and only that one.
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["kiln.build/cancel"] = "" .. obj.status.run
return obj
