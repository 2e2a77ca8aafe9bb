// Below EGo's own path, so that its internal packages can be imported.
module github.com/edgelesssys/ego/confcom

go 1.21

require github.com/edgelesssys/ego v1.8.1
