-- Which buttons make sense for an ImageBuild.
local suspended = obj.spec.suspend == true
local runs = obj.status ~= nil and obj.status.run ~= nil and obj.status.completionTime == nil

return {
  ["rebuild"] = { ["disabled"] = suspended },
  ["cancel"] = { ["disabled"] = not runs },
  ["suspend"] = { ["disabled"] = suspended },
  ["resume"] = { ["disabled"] = not suspended },
}
